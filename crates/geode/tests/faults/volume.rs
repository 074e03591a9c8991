//! A small file system of its own for a region's data, that can really be full or read-only.
//!
//! It is mounted in a mount namespace that a helper process holds open, so that nothing is left behind however a test ends:
//! the helper ends when its standard input does. It takes the right to mount; where that is missing, the library's ENOSPC
//! stands in for it.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Room for all that a run writes many times over.
const BYTES: &str = "24m";
/// Mounts at `$0`, says so, and stays until its standard input ends.
const HOLD: &str = "mount -t tmpfs -o size=\"$1\" geode-faults \"$0\" && echo mounted && exec cat";

/// A mounted file system and who holds it.
#[derive(Debug)]
pub(crate) struct Volume {
    at: PathBuf,
    holder: Child,
}

impl Volume {
    /// Mounts one at a directory that exists; `None` where that is not allowed.
    pub(crate) fn mount(at: &Path) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", HOLD]).arg(at).arg(BYTES);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().ok()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut said).ok()?;
        if said.trim() == "mounted" {
            return Some(Self { at: at.to_owned(), holder });
        }
        let _ = holder.wait();
        None
    }

    /// The directory as others than its geode reach it.
    pub(crate) fn outside(&self) -> PathBuf {
        let path = format!("/proc/{}/root{}", self.holder.id(), self.at.display());
        PathBuf::from(path)
    }

    /// What runs a program where it sees the volume.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg("--").arg(program);
        command
    }

    /// Mounts it anew with an option.
    pub(crate) fn remount(&self, option: &str) -> io::Result<()> {
        let mut command = self.command("mount");
        let status = command.arg("-o").arg(format!("remount,{option}")).arg(&self.at).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("remount,{option}: {status}"))) }
    }

    fn ballast(&self) -> PathBuf {
        self.outside().join("ballast")
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut ballast = File::create(self.ballast())?;
        loop {
            match ballast.write(&[0; 64 << 10]) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives it back.
    pub(crate) fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // For whoever looks at a run that failed: the volume goes away, this stays.
        let _ = Command::new("cp").arg("-r").arg(self.outside().join("data")).arg(&self.at).status();
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
