"""Reports of validation runs: what a run left, as a document for people (Markdown, HTML) or for CI (JUnit XML)."""
