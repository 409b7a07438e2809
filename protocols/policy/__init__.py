"""What a party grants to whom: clauses, the judgement of a request, and what was granted before."""
