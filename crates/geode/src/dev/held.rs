//! A geode that `geode dev` started must not outlive it, however it ends.

use std::io::Read as _;

/// Exit code of a geode whose `geode dev` is gone.
const ORPHANED: i32 = 3;

/// Makes this process end when the one that started it ends, also by SIGKILL: twice over, by the kernel's parent-death
/// signal (Linux, prctl(2)), and because standard input, which the parent holds open and never writes to, comes to
/// its end. Call it first thing: a parent that died before is noticed by the second.
///
/// The kernel's signal is bound to the thread that started this process; `geode dev` starts geodes from its main thread.
pub(crate) fn die_with_parent() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, set_parent_process_death_signal};
        if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
            tracing::warn!(%error, "the kernel refuses the parent-death signal");
        }
    }
    let watch = || {
        let mut pipe = std::io::stdin().lock();
        let mut ignored = [0; 64];
        loop {
            match pipe.read(&mut ignored) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => std::process::exit(ORPHANED),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("held".to_owned()).spawn(watch) {
        tracing::warn!(%error, "no thread to watch over the parent");
    }
}
