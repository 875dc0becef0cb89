"""Clusters as they are written on the command line, and what is known of a GPU."""

from __future__ import annotations

from lape_ds.training.plan.cluster import parse_cluster, peak_flops


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
