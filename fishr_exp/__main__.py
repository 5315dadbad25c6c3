"""`python -m fishr_exp` is `fishr-exp`."""

from fishr_exp.cli.run import main

main()
