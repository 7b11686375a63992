"""Quality on real data: reproduction of the records, and the tables and plots made from them."""
