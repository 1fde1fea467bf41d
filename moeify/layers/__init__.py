"""What a converted model is made of: MoELayer and its routers, in torch (docs/moe-layer.md)."""
