"""The command line, for operators: a few lines a command over `coordinator`.

`main` has the table of commands and the exit codes; `context` is what a command is given,
`options` and `settings` how it was called, `answering`, `output` and `failures` what it prints.
Then a file for each noun: `names`, `persistent`, `hosts`, `forced`, `checking`, `agents`, `sim`,
`etcd`, `demo`.
"""
