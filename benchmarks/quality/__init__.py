"""Quality on real data: how records are reproduced, and the tables and plots that are made from them."""
