"""From opaque `moeify::MoE` nodes to what a file holds: one file a lowering."""
