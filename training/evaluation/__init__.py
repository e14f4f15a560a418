"""What training gained and what it lost: measured before and after, with intervals, told in a report."""
