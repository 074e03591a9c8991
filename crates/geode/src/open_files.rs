//! How many files this process may have open. Every client costs one, and one more while the service answers it; the usual
//! soft limit of 1024 would be the first bottleneck.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The door's 10 000 clients twice, as many Redis clients, and room. Not the hard limit where that is higher: services
/// inherit the limit, and some programs walk over every number below it when they start another.
const MAX_FILES: u64 = 65_536;

/// Raises the soft limit as far as the hard limit and [`MAX_FILES`] allow.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MAX_FILES, |most| most.min(MAX_FILES));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
