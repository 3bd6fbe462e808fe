"""Many runs of one experiment that differ in some settings: what they are, running them, comparing them.

Read in this order: points (what a sweep is), runs (folders and processes), launch (commands for other machines), report
(table and plot).
"""
