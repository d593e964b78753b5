//! Stores in folders, and mounts of them.

use crate::mapped;
use crate::program::path;
use crate::qemu::seeded;
use multifd_core::RamBlock;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something is so, for at most two minutes.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// A file with a guest of `mib`, whose first `data` MiB hold something.
pub fn image(folder: &Path, name: &str, mib: u64, data: usize, seed: u64) -> PathBuf {
    let block = RamBlock::anonymous("pc.ram", mib << 20, 4096).unwrap();
    let contents = seeded(data << 20, seed);
    block
        .region(0, contents.len())
        .unwrap()
        .copy_from(&contents);
    let path = folder.join(name);
    mapped::create(&path, block);
    path
}

/// A `multifd mount` that serves. It is told to end when dropped.
pub struct Mounted {
    child: Child,
    /// Where.
    pub folder: PathBuf,
    /// What it said when it was there.
    pub said: String,
}

impl Mounted {
    /// Mounts a store at a folder, which is made; returns when its files are there.
    pub fn start(store: &Path, folder: &Path, more: &[&str]) -> Self {
        let mount = Self::with(store, folder, more);
        assert!(mount.said.starts_with("mounted at "), "{}", mount.said);
        mount
    }

    /// The same, whatever it says then.
    pub fn with(store: &Path, folder: &Path, more: &[&str]) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let mut child = Command::new(path())
            .args(["mount", text(store), text(folder)])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        Self {
            child,
            said: line,
            folder: folder.into(),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Tells it to end; returns its exit status and what it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        until("the mount ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        let status = self.child.wait().unwrap().code();
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (status, said)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal("TERM");
            let _ = self.child.wait();
        }
        let _ = Command::new("umount")
            .args(["-l", text(&self.folder)])
            .output();
    }
}

/// The snapshot of this name in the store of a folder's tests.
pub fn store(folder: &Path, name: &str) -> String {
    format!("store:{}#{name}", folder.join("store").display())
}

/// Damages the chunk that holds a place of the guest's memory.
pub fn damage(folder: &Path) {
    for pack in walk(&folder.join("store/packs")) {
        let file = File::options().read(true).write(true).open(pack).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
    }
}

/// All files below a folder.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Ends the processes that serve snapshots of stores in a folder, when it is dropped: without it
/// they would wait for a while whether somebody comes.
pub struct Served<'f>(pub &'f Path);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0);
            let is_mount = words.nth(1) == Some(b"mount");
            let store = words.next().unwrap_or_default();
            if is_mount && store.starts_with(self.0.as_os_str().as_encoded_bytes()) {
                let id = process.file_name();
                let _ = Command::new("kill").arg("-TERM").arg(id).status();
            }
        }
    }
}
