"""Jobs between organisations: the caller, the serving party, consent, and what each keeps about a job."""
