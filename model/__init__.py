"""The model: training, inference and evaluation. Independent of HTTP and of the service's storage."""
