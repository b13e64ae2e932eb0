"""How fast a deployment is, beside the floor: the same NATS operations with nothing of ours."""
