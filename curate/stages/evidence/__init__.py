"""What training runs show: intervals of differences, and the one verdict that is made of them."""
