//! One transfer between two ends, each ours or QEMU's.

use crate::ours::Compression;
use crate::process::MemoryWatch;
use crate::qemu::{Qemu, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Whose an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Whose {
    Multifd,
    Qemu,
}

/// What is moved, and where.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The image, on tmpfs.
    pub(crate) image: PathBuf,
    pub(crate) bytes: u64,
    /// The folder on tmpfs.
    pub(crate) folder: PathBuf,
}

/// What is asked of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Ask {
    /// Whose the source is. A QEMU takes only what one sends: the destination is the same, or ours.
    pub(crate) from: Whose,
    pub(crate) to: Whose,
    pub(crate) unix: bool,
    pub(crate) compression: Compression,
    pub(crate) channels: u8,
    /// The destination's memory has its pages already.
    pub(crate) prealloc: bool,
}

/// What one transfer, or one end of it, took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    /// Processor seconds of both ends.
    pub(crate) cpu: f64,
    pub(crate) wire_bytes: u64,
    /// The most anonymous memory either end took beyond what it had before, in bytes.
    pub(crate) memory: u64,
}

/// One of our ends, as a process of its own.
pub(crate) struct Ours {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Ours {
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut child = Command::new(me)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let said = child.stdout.take().ok_or("a child without an output")?;
        Ok(Self {
            child,
            said: BufReader::new(said),
        })
    }

    pub(crate) fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.said.read_line(&mut line).map_err(|e| e.to_string())?;
        serde_json::from_str(&line).map_err(|e| format!("our end failed ({line:?}: {e})"))
    }

    /// Waits for the process's end, which must be a good one.
    fn end(mut self) -> Result<()> {
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("our end failed: {status}"))
        }
    }

    pub(crate) fn finish(mut self) -> Result<Took> {
        let took = self.line()?;
        self.end()?;
        Ok(took)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| format!("{} is no text", path.display()))
}

/// An end that receives and is ready.
enum Receiving {
    Ours(Ours),
    Qemu(Qemu),
}

impl Stage {
    /// A new file for a destination's memory; what was there before is given back to the system first.
    pub(crate) fn fresh(&self) -> Result<PathBuf> {
        let path = self.folder.join("destination");
        let _ = std::fs::remove_file(&path);
        let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
        file.set_len(self.bytes).map_err(|e| e.to_string())?;
        Ok(path)
    }

    fn receiving(&self, ask: Ask, memory: &Path) -> Result<(Receiving, String)> {
        let socket = format!("unix:{}", self.folder.join("socket").display());
        let uri = if ask.unix {
            socket.as_str()
        } else {
            "tcp:127.0.0.1:0"
        };
        let _ = std::fs::remove_file(self.folder.join("socket"));
        if ask.to == Whose::Qemu {
            let mut qemu = Qemu::start(memory, self.bytes, true, ask.prealloc)?;
            qemu.multifd(ask.channels, ask.compression.name(), &[])?;
            let address = qemu.listen(uri)?;
            return Ok((Receiving::Qemu(qemu), address));
        }
        let mut args = vec!["recv", "--listen", uri, "--memory", text(memory)?];
        if ask.prealloc {
            args.push("--prealloc");
        }
        let mut ours = Ours::start(&args)?;
        let address = ours.line()?;
        Ok((Receiving::Ours(ours), address))
    }

    /// Runs one transfer.
    pub(crate) fn run(&self, ask: Ask) -> Result<Took> {
        let memory = self.fresh()?;
        let (receiving, address) = self.receiving(ask, &memory)?;
        let (watched, before) = match &receiving {
            Receiving::Qemu(qemu) => (Some(MemoryWatch::start(qemu.pid())), qemu.usage().cpu),
            Receiving::Ours(_) => (None, 0.0),
        };
        let (mut took, begun, source) = if ask.from == Whose::Qemu {
            let mut source = Qemu::start(&self.image, self.bytes, false, false)?;
            source.multifd(ask.channels, ask.compression.name(), &[])?;
            let memory = MemoryWatch::start(source.pid());
            let cpu = source.usage().cpu;
            let begun = Instant::now();
            source.migrate(&address)?;
            source.wait_completed()?;
            let took = Took {
                seconds: begun.elapsed().as_secs_f64(),
                cpu: source.usage().cpu - cpu,
                wire_bytes: source.wire_bytes()?,
                memory: memory.end(),
            };
            (took, Some(begun), Some(source))
        } else {
            let channels = ask.channels.to_string();
            let mut args = vec!["send", "--to", &address, "--memory", text(&self.image)?];
            args.extend(["--channels", &channels, "--compression", ask.compression.name()]);
            (Ours::start(&args)?.finish()?, None, None)
        };
        // Our ends say how long it took when they connect; a QEMU's begins when it is told to.
        let seconds = |took: &Took| begun.map_or(took.seconds, |begun| begun.elapsed().as_secs_f64());
        match receiving {
            Receiving::Qemu(mut qemu) => {
                qemu.wait_completed()?;
                took.seconds = seconds(&took);
                took.cpu += qemu.usage().cpu - before;
                if let Some(watched) = watched {
                    took.memory = took.memory.max(watched.end());
                }
            }
            Receiving::Ours(mut ours) => {
                let other: Took = ours.line()?;
                // Not the time its process takes to end.
                took.seconds = seconds(&took);
                ours.end()?;
                took.cpu += other.cpu;
                took.memory = took.memory.max(other.memory);
            }
        }
        drop(source);
        Ok(took)
    }

    /// Writes the image into a mapped-ram file.
    pub(crate) fn save(&self, whose: Whose, channels: u8) -> Result<Took> {
        let file = self.folder.join("mapped");
        let _ = std::fs::remove_file(&file);
        if whose == Whose::Multifd {
            return self.our_file("save", &self.image, channels);
        }
        let mut source = Qemu::start(&self.image, self.bytes, false, false)?;
        source.multifd(channels, "none", &["mapped-ram"])?;
        let (cpu, memory) = (source.usage().cpu, MemoryWatch::start(source.pid()));
        let begun = Instant::now();
        source.migrate(&format!("file:{}", text(&file)?))?;
        source.wait_completed()?;
        Ok(Took {
            seconds: begun.elapsed().as_secs_f64(),
            cpu: source.usage().cpu - cpu,
            wire_bytes: source.wire_bytes()?,
            memory: memory.end(),
        })
    }

    /// Loads the file written last into fresh memory.
    pub(crate) fn load(&self, whose: Whose, channels: u8) -> Result<Took> {
        let memory = self.fresh()?;
        if whose == Whose::Multifd {
            return self.our_file("load", &memory, channels);
        }
        let mut target = Qemu::start(&memory, self.bytes, true, false)?;
        target.multifd(channels, "none", &["mapped-ram"])?;
        let (cpu, watch) = (target.usage().cpu, MemoryWatch::start(target.pid()));
        let begun = Instant::now();
        target.listen(&format!("file:{}", text(&self.folder.join("mapped"))?))?;
        target.wait_completed()?;
        Ok(Took {
            seconds: begun.elapsed().as_secs_f64(),
            cpu: target.usage().cpu - cpu,
            wire_bytes: 0,
            memory: watch.end(),
        })
    }

    fn our_file(&self, role: &str, memory: &Path, channels: u8) -> Result<Took> {
        let (file, channels) = (self.folder.join("mapped"), channels.to_string());
        let args = [
            role,
            "--memory",
            text(memory)?,
            "--file",
            text(&file)?,
            "--channels",
            &channels,
        ];
        Ours::start(&args)?.finish()
    }

    /// Whether the destination holds what the source does.
    pub(crate) fn is_same(&self) -> Result<bool> {
        let open = |path: &Path| std::fs::File::open(path).map_err(|e| e.to_string());
        let (mut one, mut other) = (open(&self.image)?, open(&self.folder.join("destination"))?);
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut left = self.bytes;
        while left > 0 {
            use std::io::Read;
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
