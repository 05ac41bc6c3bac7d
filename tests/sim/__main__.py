import sys, time, gc
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=True)
from tests.sim.schedule import generate
from tests.sim.world import play
from collections import Counter
a, b = int(sys.argv[1]), int(sys.argv[2])
verbose = len(sys.argv) > 3
gc.disable()
t = time.time(); ops = 0; total = Counter()
for seed in range(a, b):
    out = play(generate(seed), verbose=verbose)
    ops += out.operations; total += out.counts
    if verbose: print("\n".join(out.log))
    if out.violations: print(seed, out.violations[:3])
    if seed % 50 == 49: gc.collect()
    if verbose: print(out.trace, out.operations)
dt = time.time() - t
print(f"{b-a} schedules {dt:.1f}s {dt/(b-a)*1000:.1f} ms each, {ops/(b-a):.0f} ops each")
for k, v in sorted(total.items()): print(f"{v:8} {k}")
