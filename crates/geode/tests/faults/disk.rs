//! A region's disk as the machine below a real geode: it fails on demand, and a crash takes what was not synced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use geode_sim::{Random, Tail};

use crate::control::{self, Control, Reads, SYNCED_BYTES, Synced, Syncs, Writes};
use crate::volume::Volume;

/// One region's disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Where the geode keeps its data, as it sees it.
    pub(crate) data: PathBuf,
    /// A file system of its own, if it has one.
    volume: Option<Volume>,
    is_full: bool,
    is_read_only: bool,
    /// Where a copy of what is on disk for certain is made.
    certain: PathBuf,
    control: PathBuf,
    journal: PathBuf,
    boot: PathBuf,
    now: Control,
    boots: u64,
}

/// What of a file is on disk.
#[derive(Clone, Debug, Default)]
struct Durable {
    length: u64,
    /// What a failed sync should have written: it never comes.
    doomed: Vec<(u64, u64)>,
}

impl Disk {
    /// A new disk below a directory; with a volume of its own, if wanted and possible.
    pub(crate) fn new(directory: &Path, wants_volume: bool) -> io::Result<Self> {
        let mounted = directory.join("volume");
        fs::create_dir_all(&mounted)?;
        let mut disk = Self {
            data: mounted.join("data"),
            volume: if wants_volume { Volume::mount(&mounted) } else { None },
            is_full: false,
            is_read_only: false,
            certain: directory.join("certain"),
            control: directory.join("control"),
            journal: directory.join("journal"),
            boot: directory.join("boot"),
            now: Control::default(),
            boots: 0,
        };
        File::create(&disk.journal)?;
        disk.write_control()?;
        disk.reboot()?;
        Ok(disk)
    }

    /// A geode that is to run on this disk.
    pub(crate) fn command(&self, geode: &str) -> Command {
        let volume = self.volume.as_ref();
        let mut command = volume.map_or_else(|| Command::new(geode), |volume| volume.command(geode));
        command.env("LD_PRELOAD", library()).env(control::DATA, &self.data);
        command.env(control::CONTROL, &self.control).env(control::JOURNAL, &self.journal);
        command.env(control::BOOT, &self.boot);
        command
    }

    /// The data, as others than the geode reach it.
    pub(crate) fn data_from_outside(&self) -> PathBuf {
        self.volume.as_ref().map_or_else(|| self.data.clone(), |volume| volume.outside().join("data"))
    }

    /// Nothing more fits, or something does again. What is read-only stays as full as it is.
    pub(crate) fn fill(&mut self, is_full: bool) -> io::Result<()> {
        if self.is_read_only {
            return Ok(());
        }
        self.is_full = is_full;
        match &self.volume {
            Some(volume) if is_full => volume.fill(),
            Some(volume) => volume.empty(),
            None => self.fail_writes(if is_full { Writes::NoSpace } else { Writes::Work }, 0),
        }
    }

    pub(crate) fn fail_writes(&mut self, writes: Writes, room: u64) -> io::Result<()> {
        self.now = Control { number: self.now.number + 1, writes, room, ..self.now };
        self.write_control()
    }

    pub(crate) fn fail_syncs(&mut self, syncs: Syncs) -> io::Result<()> {
        self.now = Control { number: self.now.number + 1, syncs, ..self.now };
        self.write_control()
    }

    pub(crate) fn fail_reads(&mut self, reads: Reads) -> io::Result<()> {
        self.now = Control { number: self.now.number + 1, reads, ..self.now };
        self.write_control()
    }

    /// Its file system is mounted read-only, or as before; no process may have files there open for writing. Where there is
    /// no volume, the library stands in for it.
    pub(crate) fn mount_read_only(&mut self, is_read_only: bool) -> io::Result<()> {
        self.is_read_only = is_read_only;
        match &self.volume {
            Some(volume) => volume.remount(if is_read_only { "ro" } else { "rw" }),
            None => self.fail_writes(if is_read_only { Writes::ReadOnly } else { Writes::Work }, 0),
        }
    }

    pub(crate) fn set_clock(&mut self, skew_us: i64) -> io::Result<()> {
        self.now.skew_us = skew_us;
        self.write_control()
    }

    /// Whether something of it fails that a start needs.
    pub(crate) fn is_bad(&self) -> bool {
        let works = (Writes::Work, Syncs::Work, Reads::Work);
        self.is_full || self.is_read_only || (self.now.writes, self.now.syncs, self.now.reads) != works
    }

    fn write_control(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.control)?;
        file.write_all_at(&self.now.encode(), 0)
    }

    fn reboot(&mut self) -> io::Result<()> {
        self.boots += 1;
        fs::write(&self.boot, format!("boot-{}\n", self.boots))
    }

    /// The machine stopped, and with it the process; what was not synced is as `tail` says, and it boots again.
    /// `before` is shown a copy of the data directory that holds only what was on disk for certain.
    pub(crate) fn crash(
        &mut self,
        tail: Tail,
        random: &mut Random,
        before: impl FnOnce(&Path),
    ) -> io::Result<u64> {
        self.mount_read_only(false)?;
        let durable = self.durable()?;
        let (data, certain) = (self.data_from_outside(), self.certain.clone());
        fs::create_dir_all(certain.join("log"))?;
        for file in files(&data.join("log"))? {
            let copy = certain.join("log").join(file.file_name().unwrap_or_default());
            fs::copy(&file, &copy)?;
            let metadata = fs::metadata(&file)?;
            let kept = durable.get(&metadata.ino()).map_or(0, Durable::whole).min(metadata.len());
            File::options().write(true).open(&copy)?.set_len(kept)?;
            if kept == 0 {
                fs::remove_file(&copy)?;
            }
        }
        before(&certain);
        fs::remove_dir_all(&certain)?;
        let mut lost = 0;
        for file in files(&data)?.into_iter().chain(files(&data.join("log"))?) {
            let inode = fs::metadata(&file)?.ino();
            lost += forget(&file, &durable.get(&inode).cloned().unwrap_or_default(), tail, random)?;
        }
        // Whatever is there now is what the new boot finds: all of it is on disk.
        File::create(&self.journal)?;
        let mut journal = OpenOptions::new().append(true).open(&self.journal)?;
        for file in files(&data)?.into_iter().chain(files(&data.join("log"))?) {
            let metadata = fs::metadata(&file)?;
            let note = Synced { inode: metadata.ino(), length: metadata.len(), failed: false, begins: false };
            journal.write_all(&note.encode())?;
        }
        self.reboot()?;
        Ok(lost)
    }

    /// What is on disk for certain, by inode.
    fn durable(&self) -> io::Result<BTreeMap<u64, Durable>> {
        let mut durable: BTreeMap<u64, Durable> = BTreeMap::new();
        for note in fs::read(&self.journal)?.as_chunks::<SYNCED_BYTES>().0 {
            let Synced { inode, length, failed, begins } = Synced::decode(note);
            if begins {
                durable.remove(&inode);
            }
            let file = durable.entry(inode).or_default();
            if failed && length > file.length {
                file.doomed.push((file.length, length));
            }
            file.length = length.max(file.length);
        }
        Ok(durable)
    }
}

impl Durable {
    /// How much can be read without a hole.
    fn whole(&self) -> u64 {
        self.doomed.iter().map(|(from, _)| *from).min().unwrap_or(self.length)
    }
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Takes away what a crash takes of a file; returns how many bytes.
fn forget(path: &Path, durable: &Durable, tail: Tail, random: &mut Random) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let zeros = |from: u64, to: u64| file.write_all_at(&vec![0; (to - from) as usize], from);
    for (from, to) in &durable.doomed {
        zeros(*from, (*to).min(length).max(*from))?;
    }
    let unsynced = length.saturating_sub(durable.length);
    if unsynced == 0 {
        return Ok(0);
    }
    let somewhere = durable.length + random.below(unsynced);
    match tail {
        Tail::Kept => return Ok(0),
        Tail::Lost => file.set_len(durable.length)?,
        Tail::CutShort => file.set_len(somewhere)?,
        Tail::Garbage => {
            let garbage: Vec<u8> = (somewhere..length).map(|_| random.draw() as u8).collect();
            file.write_all_at(&garbage, somewhere)?;
        }
        Tail::Hole => zeros(somewhere, somewhere + (length - somewhere).min(512))?,
    }
    Ok(length - durable.length)
}

/// The library that stands between a geode and its disk; it was built with this test.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("a test knows where it is");
    let library = program.with_file_name("libgeode_faulty_disk.so");
    assert!(library.exists(), "{} is missing: it is built with this test", library.display());
    library
}
