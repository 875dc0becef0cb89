"""The atlas: everything that is known of a model's language neurons, in one folder that can be published as it is."""
