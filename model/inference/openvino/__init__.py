"""The model's layers in OpenVINO: export them to graphs, load the graphs, run them."""
