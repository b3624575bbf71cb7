"""Privacy audits: the upper bound recomputed from ledgers, and lower bounds from attacks on the code that trains."""
