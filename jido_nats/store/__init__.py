"""What is stored, in our own words: records, events, output, leases, and indexes of them."""
