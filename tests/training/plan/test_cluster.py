"""Clusters as they are written on the command line, and what is known of a GPU."""

from __future__ import annotations

from lape_ds.training.plan.cluster import Cluster, cluster_of_job, parse_cluster, peak_flops


def test_clusters_as_they_are_written() -> None:
    cluster = parse_cluster("2x8x80gb")
    assert (cluster.nodes, cluster.gpus_per_node, cluster.memory, cluster.num_ranks) == (2, 8, 80 * 10**9, 16)
    assert str(cluster) == "2x8x80GB"
    assert cluster.usable == 80e9 * 0.92 - 1e9
    assert cluster.bandwidth < parse_cluster("8x80GB").bandwidth


def test_peak_of_a_gpu() -> None:
    """Dense bfloat16, NVIDIA's data sheets of H100 SXM and PCIe, and A100."""
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("A card of next year") is None


def test_a_started_job_has_a_gpu_for_each_rank() -> None:
    """Whether its ranks see all GPUs of their node, or, as with --gpus-per-task=1, each its own alone."""
    for seen in (8, 1):
        found = cluster_of_job(Cluster(1, seen, 40 * 10**9, "NVIDIA A100-SXM4-40GB"), 16, 8)
        assert (found.nodes, found.gpus_per_node, found.num_ranks) == (2, 8, 16)
        assert (found.memory, found.gpu) == (40 * 10**9, "NVIDIA A100-SXM4-40GB")
    alone, of_eight = cluster_of_job(None, 1, 1), cluster_of_job(None, 8, 8)
    assert (of_eight.nodes, of_eight.gpus_per_node, of_eight.gpu) == (1, 8, "")
    assert of_eight.memory < alone.memory / 4, "they share the memory of the machine"
