"""Problems: what is learnt. A folder each, and one line here."""
