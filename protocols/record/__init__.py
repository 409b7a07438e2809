"""One party's ledger on disk: written as a run goes, read, verified, and compared with another party's."""
