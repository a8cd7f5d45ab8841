"""A campaign on SLURM: workers by dask-jobqueue, or, with --local, processes of this machine. See clusters.md."""

import argparse
import contextlib

import distributed
import jax

jax.config.update("jax_enable_x64", True)

import gdflow as gf  # noqa: E402


@contextlib.contextmanager
def cluster(options):
    """The client of a cluster that ends with it."""
    if options.local:
        made = distributed.LocalCluster(options.jobs, threads_per_worker=options.cores, dashboard_address=None)
    else:
        from dask_jobqueue import SLURMCluster

        made = SLURMCluster(
            cores=options.cores, processes=1, memory=options.memory, walltime=options.walltime, queue=options.queue
        )
        made.scale(jobs=options.jobs)
    with made, distributed.Client(made) as client:
        client.wait_for_workers(1)
        yield client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="jobs, of one worker each")
    parser.add_argument("--cores", type=int, default=1, help="cores of a job")
    parser.add_argument("--memory", default="8GB", help="memory of a job")
    parser.add_argument("--walltime", default="04:00:00", help="time of a job")
    parser.add_argument("--queue", help="SLURM's partition")
    parser.add_argument("--local", action="store_true", help="processes of this machine")
    parser.add_argument("--num", type=int, default=10**6, help="starts")
    parser.add_argument("--seconds", type=float, help="begin no more starts after so much time")
    parser.add_argument("--out", default="huge", help="folder of the campaign")
    options = parser.parse_args()

    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0], d_x=6)
    law = gf.initialization.Gaussian(problem.widths([5, 5]))
    until = None if options.seconds is None else gf.basins.Until(seconds=options.seconds)
    with cluster(options) as client:
        print(
            gf.basin_sizes(
                problem, law, options.num, key=jax.random.key(0), until=until, client=client, folder=options.out
            )
        )


if __name__ == "__main__":
    main()
