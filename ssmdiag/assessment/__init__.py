"""All that is known of a layer: spectrum, memory, capacity, and the evidence that rules judge."""
