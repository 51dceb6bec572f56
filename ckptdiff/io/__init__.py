"""Files, threads and signals of this machine. Nothing in this package knows the format."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.io import durable as durable
    from ckptdiff.io import elsewhere as elsewhere
    from ckptdiff.io import folder as folder
    from ckptdiff.io import leftovers as leftovers
    from ckptdiff.io import open_files as open_files
    from ckptdiff.io import parallel as parallel
    from ckptdiff.io import places as places
    from ckptdiff.io import range_cache as range_cache
    from ckptdiff.io import ray_pool as ray_pool
    from ckptdiff.io import scratch as scratch
    from ckptdiff.io import signals as signals
    from ckptdiff.io import source as source
    from ckptdiff.io import store as store
    from ckptdiff.io import store_file as store_file
    from ckptdiff.io import store_path as store_path
    from ckptdiff.io import store_spool as store_spool
    from ckptdiff.io import store_traffic as store_traffic
    from ckptdiff.io import store_upload as store_upload
    from ckptdiff.io import store_urls as store_urls
    from ckptdiff.io import work_folder as work_folder
    from ckptdiff.io import workers as workers
else:
    __getattr__ = submodules(__name__)
