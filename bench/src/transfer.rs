//! One transfer between two ends, each ours or QEMU's, and what it took.

use crate::end::{Ours, Watch};
use crate::fresh::Warm;
use crate::ours::Compression;
use crate::qemu::{Qemu, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Whose an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Multifd,
    Qemu,
}

/// What is asked of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) unix: bool,
    pub(crate) compression: Compression,
    pub(crate) channels: u8,
    /// The destination's memory has its pages already.
    pub(crate) prealloc: bool,
}

/// How a mapped-ram file is written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileAsk {
    pub(crate) channels: u8,
    pub(crate) on_disk: bool,
    pub(crate) direct: bool,
}

/// What one transfer took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Took {
    /// From the word to go until both ends have said that they are done.
    pub(crate) seconds: f64,
    /// Processor seconds of both ends.
    pub(crate) cpu: f64,
    pub(crate) wire_bytes: u64,
    /// The most anonymous memory either end took beyond what it had before, in bytes; of ours, all
    /// it has.
    pub(crate) memory: u64,
    /// System calls of both ends, where they were counted.
    #[serde(skip)]
    pub(crate) calls: Option<u64>,
}

/// What is moved, and where.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// The image, on tmpfs.
    pub(crate) image: PathBuf,
    pub(crate) bytes: u64,
    /// A folder on tmpfs.
    pub(crate) folder: PathBuf,
    /// A folder on a disk.
    pub(crate) disk: PathBuf,
    /// A mapped-ram file with what a QEMU has beside its RAM.
    pub(crate) tail: Option<PathBuf>,
    /// Count system calls, which makes the times worth nothing.
    pub(crate) counting: bool,
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| format!("{} is no text", path.display()))
}

/// An end that listens, or sends once it is told to.
enum End {
    Ours(Ours),
    Qemu(Qemu),
}

impl Stage {
    fn destination(&self) -> PathBuf {
        self.folder.join("destination")
    }

    /// Gives what the last destination had back to the system.
    pub(crate) fn clear(&self) {
        let _ = std::fs::remove_file(self.destination());
    }

    /// A new file for a destination's memory; nothing is left of the last.
    fn fresh(&self) -> Result<PathBuf> {
        let path = self.destination();
        let file = File::create(&path).map_err(|e| e.to_string())?;
        file.set_len(self.bytes).map_err(|e| e.to_string())?;
        Ok(path)
    }

    fn watch(&self, pid: u32, before: u64, end: &str) -> Watch {
        let trace = self
            .counting
            .then(|| self.folder.join(format!("calls-{end}")));
        Watch::start(pid, before, trace)
    }

    fn watch_end(&self, end: &End, name: &str) -> Watch {
        match end {
            End::Ours(ours) => self.watch_ours(ours, name),
            End::Qemu(qemu) => self.watch_qemu(qemu, name),
        }
    }

    fn watch_ours(&self, ours: &Ours, end: &str) -> Watch {
        self.watch(ours.pid(), 0, end)
    }

    fn watch_qemu(&self, qemu: &Qemu, end: &str) -> Watch {
        self.watch(qemu.pid(), crate::process::anonymous(qemu.pid()), end)
    }

    fn receiving(&self, whose: Whose, ask: Ask, memory: &Path) -> Result<(End, String)> {
        let socket = format!("unix:{}", self.folder.join("socket").display());
        let uri = if ask.unix {
            socket.as_str()
        } else {
            "tcp:127.0.0.1:0"
        };
        let _ = std::fs::remove_file(self.folder.join("socket"));
        if whose == Whose::Qemu {
            let mut qemu = Qemu::start(memory, self.bytes, true, ask.prealloc)?;
            qemu.multifd(ask.channels, ask.compression.name(), &[])?;
            let address = qemu.listen(uri);
            return Ok((End::Qemu(qemu), address));
        }
        let mut args = vec!["recv", "--listen", uri, "--memory", text(memory)?];
        if ask.prealloc {
            args.push("--prealloc");
        }
        let mut ours = Ours::start(&args)?;
        let address = ours.line()?;
        Ok((End::Ours(ours), address))
    }

    fn sending(&self, whose: Whose, to: Whose, ask: Ask, address: &str) -> Result<End> {
        if whose == Whose::Qemu {
            let mut qemu = Qemu::start(&self.image, self.bytes, false, false)?;
            qemu.multifd(ask.channels, ask.compression.name(), &[])?;
            return Ok(End::Qemu(qemu));
        }
        let channels = ask.channels.to_string();
        let mut args = vec!["send", "--to", address, "--memory", text(&self.image)?];
        args.extend([
            "--channels",
            &channels,
            "--compression",
            ask.compression.name(),
        ]);
        if to == Whose::Qemu {
            let tail = self
                .tail
                .as_deref()
                .ok_or("no QEMU to take the rest of a guest from")?;
            args.extend(["--tail", text(tail)?]);
        }
        let mut ours = Ours::start(&args)?;
        ours.ready()?;
        Ok(End::Ours(ours))
    }

    /// Runs one transfer; `warm` is freed just before.
    pub(crate) fn run(&self, ask: Ask, from: Whose, to: Whose, warm: Option<Warm>) -> Result<Took> {
        let memory = self.fresh()?;
        let (mut receiving, address) = self.receiving(to, ask, &memory)?;
        let mut sending = self.sending(from, to, ask, &address)?;
        let destination = self.watch_end(&receiving, "destination");
        let source = self.watch_end(&sending, "source");
        drop(warm);
        let begun = Instant::now();
        let sent = match &mut sending {
            End::Ours(ours) => {
                ours.go()?;
                Some(ours.told()?)
            }
            End::Qemu(qemu) => {
                qemu.migrate(&address);
                qemu.wait_completed();
                None
            }
        };
        let received = match &mut receiving {
            End::Ours(ours) => Some(ours.told()?),
            End::Qemu(qemu) => {
                qemu.wait_completed();
                None
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        let (from, to) = (source.end()?, destination.end()?);
        let wire_bytes = match (sent, &mut sending) {
            (Some(told), _) => told.wire_bytes,
            (None, End::Qemu(qemu)) => qemu.wire_bytes(),
            (None, End::Ours(_)) => 0,
        };
        for end in [sending, receiving] {
            if let End::Ours(ours) = end {
                ours.end()?;
            }
        }
        Ok(Took {
            seconds,
            cpu: sent.map_or(from.cpu, |told| told.cpu) + received.map_or(to.cpu, |told| told.cpu),
            wire_bytes,
            memory: from.memory.max(to.memory),
            calls: from.calls.zip(to.calls).map(|(a, b)| a + b),
        })
    }

    fn mapped(&self, ask: FileAsk) -> PathBuf {
        if ask.on_disk {
            &self.disk
        } else {
            &self.folder
        }
        .join("mapped")
    }

    /// Writes the image into a mapped-ram file; `warm` is freed just before.
    pub(crate) fn save(&self, whose: Whose, ask: FileAsk, warm: Option<Warm>) -> Result<Took> {
        let file = self.mapped(ask);
        let _ = std::fs::remove_file(&file);
        let took = if whose == Whose::Multifd {
            self.our_file("save", &self.image, ask, warm)
        } else {
            let mut source = Qemu::start(&self.image, self.bytes, false, false)?;
            source.multifd(ask.channels, "none", &["mapped-ram"])?;
            source.direct_io(ask.direct)?;
            self.qemus_file(source, warm, |source| {
                source.migrate(&format!("file:{}", text(&file)?));
                source.wait_completed();
                Ok(())
            })
        };
        let took = took?;
        // What is left to be written does not belong to the next run.
        File::open(&file)
            .and_then(|file| file.sync_all())
            .map_err(|e| e.to_string())?;
        Ok(took)
    }

    /// Loads the file written last, or one that is written now, into fresh memory; `warm` is freed
    /// just before.
    pub(crate) fn load(&self, whose: Whose, ask: FileAsk, warm: Option<Warm>) -> Result<Took> {
        let (memory, file) = (self.fresh()?, self.mapped(ask));
        if !file.exists() {
            // A QEMU loads no file of a machine without devices.
            let whose = if self.tail.is_some() {
                Whose::Qemu
            } else {
                Whose::Multifd
            };
            self.save(whose, ask, None)?;
        }
        if ask.on_disk {
            // From the disk, not out of the page cache.
            let file = File::open(&file).map_err(|e| e.to_string())?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(|e| e.to_string())?;
        }
        if whose == Whose::Multifd {
            return self.our_file("load", &memory, ask, warm);
        }
        let mut target = Qemu::start(&memory, self.bytes, true, false)?;
        target.multifd(ask.channels, "none", &["mapped-ram"])?;
        target.direct_io(ask.direct)?;
        self.qemus_file(target, warm, |target| {
            target.listen(&format!("file:{}", text(&file)?));
            target.wait_completed();
            Ok(())
        })
    }

    fn qemus_file(
        &self,
        mut qemu: Qemu,
        warm: Option<Warm>,
        work: impl FnOnce(&mut Qemu) -> Result<()>,
    ) -> Result<Took> {
        let watch = self.watch_qemu(&qemu, "file");
        drop(warm);
        let begun = Instant::now();
        work(&mut qemu)?;
        let seconds = begun.elapsed().as_secs_f64();
        let used = watch.end()?;
        Ok(Took {
            seconds,
            cpu: used.cpu,
            wire_bytes: qemu.wire_bytes(),
            memory: used.memory,
            calls: used.calls,
        })
    }

    fn our_file(
        &self,
        role: &str,
        memory: &Path,
        ask: FileAsk,
        warm: Option<Warm>,
    ) -> Result<Took> {
        let (file, channels) = (self.mapped(ask), ask.channels.to_string());
        let mut args = vec![role, "--memory", text(memory)?, "--file", text(&file)?];
        args.extend(["--channels", &channels]);
        if ask.direct {
            args.push("--direct");
        }
        let mut ours = Ours::start(&args)?;
        ours.ready()?;
        let watch = self.watch_ours(&ours, "file");
        drop(warm);
        let begun = Instant::now();
        ours.go()?;
        let told = ours.told()?;
        let seconds = begun.elapsed().as_secs_f64();
        let used = watch.end()?;
        ours.end()?;
        Ok(Took {
            seconds,
            cpu: told.cpu,
            wire_bytes: told.wire_bytes,
            memory: used.memory,
            calls: used.calls,
        })
    }

    /// Whether the destination holds what the source does.
    pub(crate) fn is_same(&self) -> Result<bool> {
        let open = |path: &Path| File::open(path).map_err(|e| e.to_string());
        let (mut one, mut other) = (open(&self.image)?, open(&self.destination())?);
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut left = self.bytes;
        while left > 0 {
            let n = left.min(1 << 20) as usize;
            one.read_exact(&mut a[..n]).map_err(|e| e.to_string())?;
            other.read_exact(&mut b[..n]).map_err(|e| e.to_string())?;
            if a[..n] != b[..n] {
                return Ok(false);
            }
            left -= n as u64;
        }
        Ok(true)
    }
}
