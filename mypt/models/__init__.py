"""The model and its sizes; `configuration_mypt` and `modeling_mypt` travel with every saved checkpoint."""
