"""The model's layers in OpenVINO: export, load, run."""
