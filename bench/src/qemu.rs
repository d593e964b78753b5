//! A QEMU that is measured: paused, its RAM a file on tmpfs, driven by QMP.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) type Result<T> = std::result::Result<T, String>;

pub(crate) fn program() -> String {
    std::env::var("MULTIFD_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into())
}

/// The QEMU's version, if there is one here.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(program()).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let words: Vec<_> = text.lines().next()?.split(' ').collect();
    words.get(3).map(|word| (*word).to_owned())
}

/// Waits for a QEMU to connect, or to end before it does.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, Some(&tick)).map_err(|e| e.to_string())? > 0 {
            return listener
                .accept()
                .map(|(stream, _)| stream)
                .map_err(|e| e.to_string());
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Err(format!("QEMU has ended: {status}"));
        }
    }
}

/// A QEMU that runs. It is killed when dropped.
pub(crate) struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    events: Vec<Value>,
    _folder: tempfile::TempDir,
}

impl Qemu {
    /// Starts one whose RAM is the file `memory`.
    pub(crate) fn start(memory: &Path, bytes: u64, incoming: bool, prealloc: bool) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).map_err(|e| e.to_string())?;
        let prealloc = if prealloc { ",prealloc=on" } else { "" };
        let mut command = Command::new(program());
        command
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-S",
                "-M",
                "pc,memory-backend=pc.ram",
            ])
            .args(["-m", &format!("{}", bytes >> 20), "-object"])
            .arg(format!(
                "memory-backend-file,id=pc.ram,size={bytes},share=on,mem-path={}{prealloc}",
                memory.display()
            ))
            .args(["-qmp", &format!("unix:{}", socket.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let stream = accept(&listener, &mut child)?;
        let patience = Duration::from_secs(300);
        stream
            .set_read_timeout(Some(patience))
            .map_err(|e| e.to_string())?;
        let mut qemu = Self {
            child,
            qmp: BufReader::new(stream),
            events: Vec::new(),
            _folder: folder,
        };
        qemu.message()?;
        qemu.execute("qmp_capabilities", &json!({}))?;
        qemu.capabilities(&["events"])?;
        Ok(qemu)
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.qmp.read_line(&mut line) {
            Ok(n) if n > 0 => serde_json::from_str(&line).map_err(|e| e.to_string()),
            other => Err(format!("QEMU says no more: {other:?}")),
        }
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.qmp
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|e| e.to_string())?;
        loop {
            let mut message = self.message()?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                return Err(format!("{command}: {error}"));
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    fn capabilities(&mut self, names: &[&str]) -> Result<()> {
        let list: Vec<_> = names
            .iter()
            .map(|name| json!({ "capability": name, "state": true }))
            .collect();
        self.execute("migrate-set-capabilities", &json!({ "capabilities": list }))?;
        Ok(())
    }

    /// Switches multifd on; `capabilities` are those beside it.
    pub(crate) fn multifd(&mut self, channels: u8, compression: &str, capabilities: &[&str]) -> Result<()> {
        self.capabilities(&[&["multifd"], capabilities].concat())?;
        self.execute(
            "migrate-set-parameters",
            &json!({
                "multifd-channels": channels,
                "multifd-compression": compression,
                "multifd-zlib-level": 1,
                "multifd-zstd-level": 1,
                "max-bandwidth": 1_u64 << 40,
            }),
        )?;
        Ok(())
    }

    /// Whether it goes past the page cache with files.
    pub(crate) fn direct_io(&mut self, direct: bool) -> Result<()> {
        self.execute("migrate-set-parameters", &json!({ "direct-io": direct }))?;
        Ok(())
    }

    /// Has it listen; returns where.
    pub(crate) fn listen(&mut self, uri: &str) -> Result<String> {
        self.execute("migrate-incoming", &json!({ "uri": uri }))?;
        if uri.starts_with("unix:") || uri.starts_with("file:") {
            return Ok(uri.into());
        }
        let info = self.execute("query-migrate", &json!({}))?;
        let port = info["socket-address"][0]["port"].as_str().unwrap_or_default();
        Ok(format!("tcp:127.0.0.1:{port}"))
    }

    pub(crate) fn migrate(&mut self, uri: &str) -> Result<()> {
        self.execute("migrate", &json!({ "uri": uri }))?;
        Ok(())
    }

    /// Waits for the migration's end, which must be a good one.
    pub(crate) fn wait_completed(&mut self) -> Result<()> {
        loop {
            while !self.events.is_empty() {
                let event = self.events.remove(0);
                match event["data"]["status"].as_str() {
                    Some("completed") if event["event"] == "MIGRATION" => return Ok(()),
                    Some(status @ ("failed" | "cancelled")) => {
                        let info = self.execute("query-migrate", &json!({}))?;
                        return Err(format!("QEMU's migration {status}: {info}"));
                    }
                    _ => {}
                }
            }
            let message = self.message()?;
            self.events.push(message);
        }
    }

    /// Bytes that went over the wire, as the source counts them.
    pub(crate) fn wire_bytes(&mut self) -> Result<u64> {
        let info = self.execute("query-migrate", &json!({}))?;
        Ok(info["ram"]["transferred"].as_u64().unwrap_or(0))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
