"""The Helm release engine's pure half: observe → classify → decide, the ledger, the Lease's rules, charts.

Read in this order: ``storage`` (what Helm keeps), ``request`` (what is wanted), ``ledger`` and ``lease`` (what we
keep), ``state`` (what was found), ``decide`` (what to do), ``guards`` (what is refused nevertheless), ``outcome`` and
``leftovers`` (what was done), ``objects`` (what a manifest contains), ``helm`` (what Helm reports), ``charts``
(where charts come from).
"""
