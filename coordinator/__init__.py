"""The namespace: states, transitions, sessions and placement on top of etcd.

Knows no host and no sysfs. Read in the order of dependency: `states`, `model`, `keys`,
`store`, `transactions`, `claims`, then `session`, `informer` and `client`.
"""

__version__ = "0.1.0"
