"""What can be done to a release: one action per file, all of the type :class:`base.ReleaseAction`.

``table`` maps a decision to its action; ``upgrade``, ``install``, ``rollback``, ``unlock`` and ``uninstall`` are the
actions; ``record`` ends every call that changed something, and ``run_tests`` runs the chart's tests.
"""
