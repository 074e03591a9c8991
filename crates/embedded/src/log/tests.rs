use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Config;
use crate::recovery;

/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_file_that_cannot_be_written_refuses_and_the_log_goes_on_when_it_can() {
    let data = tempfile::tempdir().unwrap();
    let mut opened = recovery::open(&Config::new(data.path(), "tested", "eu-west-1", &[])).unwrap();
    let log = &mut opened.log;
    let (path, written) = (log.segments().path(log.base), log.written());
    // For reading alone, as on a file system that has become so.
    let sound = std::mem::replace(&mut log.file, Arc::new(File::open(&path).unwrap()));
    log.append_incarnation(7);
    let trouble = log.flush().unwrap_err();
    let text = trouble.to_string();
    assert!(text.starts_with("DISK the log in ") && text.contains("Bad file descriptor"), "{text}");
    assert!(trouble.doubt().contains("it may or may not happen"));
    assert_eq!((log.trouble(), log.written()), (Some(&trouble), written));
    assert!(log.is_waiting() && log.flush().is_err(), "it is not tried at once");
    assert_eq!(fs::metadata(&path).unwrap().len(), written);

    log.file = sound;
    let until = Instant::now() + DEADLINE;
    while log.flush().is_err() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert!(log.trouble().is_none() && log.written() > written);
    assert_eq!(fs::metadata(&path).unwrap().len(), log.written(), "nothing stands in it twice");
}
