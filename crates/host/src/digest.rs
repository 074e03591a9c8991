//! The service's digest: what tells two regions that they run the same thing.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256};

/// Digests one command, and does not read its files again while they are unchanged.
pub(crate) struct Digester {
    command: Vec<String>,
    working_directory: PathBuf,
    last: Mutex<Option<(Vec<Stamp>, String)>>,
}

/// What changes when a file's content does: device, inode, size, and time of modification in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Digester {
    pub(crate) fn new(command: &[String], working_directory: &Path) -> Self {
        Self {
            command: command.to_vec(),
            working_directory: working_directory.to_owned(),
            last: Mutex::new(None),
        }
    }

    /// SHA-256 in hexadecimal over every argument, and over the content of the program and of every argument that
    /// names a file (a directory counts by its name alone, and so does a file that cannot be read).
    /// Reads the files: not for an async thread.
    pub(crate) fn digest(&self) -> String {
        let files: Vec<Option<(PathBuf, Metadata)>> =
            self.command.iter().enumerate().map(|(index, argument)| self.file(index, argument)).collect();
        let stamps: Vec<Stamp> = files.iter().flatten().map(|(_, metadata)| stamp(metadata)).collect();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, digest)) = last.as_ref()
            && *known == stamps
        {
            return digest.clone();
        }
        let mut context = Context::new(&SHA256);
        for (argument, file) in self.command.iter().zip(&files) {
            context.update(&(argument.len() as u64).to_le_bytes());
            context.update(argument.as_bytes());
            let content = file.as_ref().and_then(|(path, _)| digest_file(path).ok());
            context.update(content.as_ref().map_or(&[], |digest| digest.as_ref()));
        }
        let digest = hexadecimal(context.finish().as_ref());
        *last = Some((stamps, digest.clone()));
        digest
    }

    fn file(&self, index: usize, argument: &str) -> Option<(PathBuf, Metadata)> {
        let path = match index {
            0 => find_program(argument, &self.working_directory)?,
            _ => self.working_directory.join(argument),
        };
        let metadata = fs::metadata(&path).ok().filter(Metadata::is_file)?;
        Some((path, metadata))
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

fn digest_file(path: &Path) -> io::Result<ring::digest::Digest> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(context.finish()),
            Ok(length) => context.update(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// The file that the system would execute for a program's name, as execvp(3) looks for it.
pub(crate) fn find_program(program: &str, working_directory: &Path) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(working_directory.join(program)).filter(executable);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| working_directory.join(directory).join(program))
        .find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn equal_commands_and_files_have_equal_digests_wherever_they_stand() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&one, &other] {
            fs::write(directory.path().join("server.js"), "serve()").unwrap();
        }
        let words = command(&["sh", "server.js", "--fast"]);
        let digest = Digester::new(&words, one.path()).digest();
        assert_eq!(digest.len(), 64);
        assert_eq!(digest, Digester::new(&words, other.path()).digest());
    }

    #[test]
    fn a_changed_file_or_argument_changes_the_digest() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("server.js");
        fs::write(&script, "serve()").unwrap();
        let digester = Digester::new(&command(&["sh", "server.js"]), directory.path());
        let before = digester.digest();
        assert_eq!(before, digester.digest());
        fs::write(&script, "serve(faster)").unwrap();
        assert_ne!(before, digester.digest());
        let joined = Digester::new(&command(&["sh", "server", ".js"]), directory.path()).digest();
        let split = Digester::new(&command(&["sh", "server.", "js"]), directory.path()).digest();
        assert_ne!(joined, split);
    }

    #[test]
    fn programs_are_found_as_the_system_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        assert!(find_program("sh", directory.path()).is_some());
        assert!(find_program("./sh", directory.path()).is_none());
        let script = directory.path().join("serve");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(find_program("./serve", directory.path()).is_none(), "not executable yet");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_program("./serve", directory.path()), Some(directory.path().join("./serve")));
    }
}
