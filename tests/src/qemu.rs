//! A real QEMU, driven over QMP.

use crate::guest::sha256;
use crate::netns;
use crate::other_qemus::Unpacked;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long QEMU may take for anything a test asks of it. A deadline for a hang, not a measure.
const PATIENCE: Duration = Duration::from_secs(300);
/// The UUID of every guest that has one.
pub const UUID: &str = "5eed5eed-0000-4000-8000-00000000c0de";

/// QEMU's program, if this machine has one that is new enough. A test that needs it returns when
/// there is none, having said so; with `CI` set that is a failure.
pub fn program() -> Option<&'static str> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let name =
                std::env::var("MULTIFD_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
            let version = Command::new(&name).arg("--version").output().ok();
            let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let text = text.unwrap_or_default();
            let major = text
                .split_whitespace()
                .find_map(|word| word.split_once('.')?.0.parse::<u32>().ok());
            let why = match major {
                Some(9..) => return Some(name),
                Some(major) => format!("{name} is version {major}, and 9 or newer is needed"),
                None => format!("there is no {name}"),
            };
            assert!(
                std::env::var_os("CI").is_none(),
                "no interop test can run in CI: {why}"
            );
            eprintln!("SKIPPED: {why}; set MULTIFD_QEMU to name one");
            None
        })
        .as_deref()
}

/// How many QEMUs may run at once: the tests' threads are more than the machine can serve.
static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());
const AT_ONCE: usize = 2;

struct Turn;

impl Turn {
    fn wait() -> Self {
        Self::wait_for::<1>();
        Self
    }

    /// Two at once: whoever holds one and waits for another may wait for somebody who does the
    /// same.
    fn wait_pair() -> (Self, Self) {
        Self::wait_for::<2>();
        (Self, Self)
    }

    fn wait_for<const N: usize>() {
        let full = |running: &mut usize| *running + N > AT_ONCE;
        let lock = RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = RUNNING
            .1
            .wait_while(lock, full)
            .unwrap_or_else(PoisonError::into_inner);
        *running += N;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RUNNING.1.notify_all();
    }
}

/// What a QEMU is started with.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The machine type.
    pub machine: &'static str,
    /// Guest RAM in MiB.
    pub ram_mib: usize,
    /// Whether the boot sector of `tests/guest` is there to run; otherwise the guest stays paused.
    pub boot: bool,
    /// What RAM holds at the start of a paused guest.
    pub seed: u64,
    /// Whether it is a destination (`-incoming defer`).
    pub incoming: bool,
    /// More arguments.
    pub more: &'static [&'static str],
    /// The network namespace it runs in.
    pub netns: Option<String>,
    /// Whether the RAM of a guest that boots holds something, too, out of its way.
    pub filled: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            machine: "pc",
            ram_mib: 16,
            boot: false,
            seed: 1,
            incoming: false,
            more: &[],
            netns: None,
            filled: false,
        }
    }
}

/// A QEMU that runs. It is killed when dropped.
pub struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    events: Vec<Value>,
    ram: PathBuf,
    serial: PathBuf,
    stderr: PathBuf,
    /// A second monitor, for `multifd` to use.
    pub monitor: PathBuf,
    _folder: tempfile::TempDir,
    _turn: Turn,
}

impl std::fmt::Debug for Qemu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qemu")
            .field("pid", &self.child.id())
            .finish_non_exhaustive()
    }
}

impl Qemu {
    /// Starts a QEMU, paused.
    pub fn start(machine: &Machine) -> Self {
        Self::start_in(Turn::wait(), machine)
    }

    /// Starts one with just these arguments, beside what every test needs; without a guest's RAM
    /// that tests look into.
    pub fn bare(args: &[&str]) -> Self {
        Self::bare_in(Turn::wait(), None, args)
    }

    /// Starts two with just these arguments.
    pub fn bare_pair(one: &[&str], other: &[&str]) -> (Self, Self) {
        let (first, second) = Turn::wait_pair();
        (
            Self::bare_in(first, None, one),
            Self::bare_in(second, None, other),
        )
    }

    /// Starts another QEMU than the installed one with just these arguments.
    pub fn unpacked(which: &Unpacked, args: &[&str]) -> Self {
        Self::bare_in(Turn::wait(), Some(which), args)
    }

    /// Starts another one, and the installed one.
    pub fn unpacked_pair(which: &Unpacked, one: &[&str], other: &[&str]) -> (Self, Self) {
        let (first, second) = Turn::wait_pair();
        (
            Self::bare_in(first, Some(which), one),
            Self::bare_in(second, None, other),
        )
    }

    fn bare_in(turn: Turn, which: Option<&Unpacked>, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = match which {
            None => Command::new(program().expect("a QEMU")),
            Some(which) => {
                let mut command = Command::new(&which.program);
                command
                    .args(which.arguments())
                    .env("QEMU_MODULE_DIR", which.modules());
                command
            }
        };
        command.args(["-nodefaults", "-display", "none"]);
        if !args.contains(&"-accel") {
            command.args(["-accel", "tcg"]);
        }
        let serial = folder.path().join("serial");
        command.args(["-serial", &format!("file:{}", serial.display())]);
        command.args(args);
        Self::run(command, folder, turn)
    }

    /// Starts two that are needed at the same time.
    pub fn start_pair(one: &Machine, other: &Machine) -> (Self, Self) {
        let (first, second) = Turn::wait_pair();
        (Self::start_in(first, one), Self::start_in(second, other))
    }

    fn start_in(turn: Turn, machine: &Machine) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (ram, serial) = (path("ram"), path("serial"));
        let len = machine.ram_mib << 20;
        if machine.boot && machine.filled {
            // The firmware and the boot sector use what is below.
            let mut bytes = seeded(len, machine.seed);
            bytes[..2 << 20].fill(0);
            std::fs::write(&ram, bytes).unwrap();
        } else if machine.boot || machine.incoming {
            std::fs::File::create(&ram)
                .unwrap()
                .set_len(len as u64)
                .unwrap();
        } else {
            std::fs::write(&ram, seeded(len, machine.seed)).unwrap();
        }
        let mut command = netns::command(
            machine.netns.as_deref(),
            program().expect("a QEMU").as_ref(),
        );
        command
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-S",
                "-uuid",
                UUID,
            ])
            .args(["-M", &format!("{},memory-backend=pc.ram", machine.machine)])
            .args(["-m", &machine.ram_mib.to_string()])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=pc.ram,size={}M,share=on,mem-path={}",
                machine.ram_mib,
                ram.display()
            ))
            .args(["-serial", &format!("file:{}", serial.display())]);
        if machine.boot {
            let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/boot.bin");
            let drive = format!("if=floppy,format=raw,readonly=on,file={}", boot.display());
            command.args(["-drive", &drive]);
        }
        command.args(machine.more);
        if machine.incoming {
            command.args(["-incoming", "defer"]);
        }
        Self::run(command, folder, turn)
    }

    fn run(mut command: Command, folder: tempfile::TempDir, turn: Turn) -> Self {
        let path = |name: &str| folder.path().join(name);
        let stderr = path("stderr");
        // QEMU connects to us: there is nothing to wait for but the connection.
        let listener = UnixListener::bind(path("qmp")).unwrap();
        command
            .args(["-qmp", &format!("unix:{}", path("qmp").display())])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", path("monitor").display()),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&stderr).unwrap());
        let mut child = command.spawn().unwrap();
        let stream = accept(&listener, &mut child, &stderr);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qemu = Self {
            child,
            qmp: BufReader::new(stream),
            events: Vec::new(),
            ram: path("ram"),
            serial: path("serial"),
            stderr,
            monitor: path("monitor"),
            _folder: folder,
            _turn: turn,
        };
        assert!(qemu.message()["QMP"].is_object());
        qemu.execute("qmp_capabilities", &json!({}));
        qemu.capability("events");
        qemu
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        match self.qmp.read_line(&mut line) {
            Ok(n) if n > 0 => serde_json::from_str(&line).unwrap(),
            other => panic!("QEMU says no more ({other:?}): {}", self.said()),
        }
    }

    /// What QEMU printed on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Executes a QMP command and returns its result, or QEMU's error.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn try_execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let message = self.message();
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().into());
            } else {
                return Ok(message["return"].clone());
            }
        }
    }

    /// Executes a QMP command that must succeed.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_execute(command, arguments)
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The guest's run state.
    pub fn state(&mut self) -> String {
        let status = self.execute("query-status", &json!({}));
        status["status"].as_str().unwrap().to_owned()
    }

    /// Waits until the guest is in a run state.
    pub fn wait_state(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.state();
            if state == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the guest is {state}, not {wanted}: {}",
                self.said()
            );
        }
    }

    /// Waits until the guest has left the last state of a migration: QEMU does not let it run
    /// before.
    pub fn wait_settled(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.state() == "finish-migrate" {
            assert!(Instant::now() < deadline, "the migration is not finalized");
        }
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until QEMU has ended by itself.
    pub fn wait_ended(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.has_ended() {
            assert!(Instant::now() < deadline, "QEMU goes on: {}", self.said());
            std::thread::yield_now();
        }
    }

    /// Whether QEMU has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Switches a migration capability on.
    pub fn capability(&mut self, name: &str) {
        let list = json!({ "capabilities": [{ "capability": name, "state": true }] });
        self.execute("migrate-set-capabilities", &list);
    }

    /// Sets up multifd.
    pub fn multifd(&mut self, channels: u8, compression: &str, zero_pages: &str) {
        self.capability("multifd");
        let parameters = json!({
            "multifd-channels": channels,
            "multifd-compression": compression,
            "zero-page-detection": zero_pages,
        });
        self.execute("migrate-set-parameters", &parameters);
    }

    /// Sets up multifd into or out of a mapped-ram file.
    pub fn mapped_ram(&mut self, channels: u8, direct_io: bool) {
        self.capability("multifd");
        self.capability("mapped-ram");
        let parameters = json!({ "multifd-channels": channels, "direct-io": direct_io });
        self.execute("migrate-set-parameters", &parameters);
    }

    /// Starts migrating.
    pub fn migrate(&mut self, uri: &str) {
        self.events.clear();
        self.execute("migrate", &json!({ "uri": uri }));
    }

    /// Lets a destination listen, and returns where it does.
    pub fn listen(&mut self, uri: &str) -> String {
        self.execute("migrate-incoming", &json!({ "uri": uri }));
        if !uri.starts_with("tcp:") {
            return uri.into();
        }
        let info = self.execute("query-migrate", &json!({}));
        let port = info["socket-address"][0]["port"].as_str();
        let host = uri
            .trim_start_matches("tcp:")
            .rsplit_once(':')
            .map_or("127.0.0.1", |(host, _)| host);
        format!("tcp:{host}:{}", port.unwrap_or_else(|| panic!("{info}")))
    }

    /// Waits until the migration has one of these states, and returns it.
    pub fn wait_migration(&mut self, wanted: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.events.iter().find_map(|event| {
                let status = event["data"]["status"].as_str()?;
                (event["event"] == "MIGRATION" && wanted.contains(&status))
                    .then(|| status.to_owned())
            });
            if let Some(status) = found {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "no state of {wanted:?}: {:?}",
                self.events
            );
            let message = self.message();
            self.events.push(message);
        }
    }

    /// Waits until the migration is over and must have succeeded.
    pub fn wait_completed(&mut self) {
        let status = self.wait_migration(&["completed", "failed", "cancelled"]);
        if status != "completed" {
            let info = self.execute("query-migrate", &json!({}));
            panic!("the migration {status}: {info}; {}", self.said());
        }
    }

    /// Waits until the migration has begun its round `n`; `false` if it stops the guest before
    /// that.
    pub fn wait_round(&mut self, n: u64) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = self.execute("query-migrate", &json!({}));
            if info["ram"]["dirty-sync-count"].as_u64() >= Some(n) {
                return true;
            }
            match info["status"].as_str() {
                Some("setup" | "active") => {
                    assert!(Instant::now() < deadline, "round {n} does not come: {info}");
                }
                Some("device" | "completed") => return false,
                _ => panic!("{info}"),
            }
        }
    }

    /// From the guest's last stop to its going on, in seconds, by QEMU's events.
    pub fn last_pause(&mut self) -> Option<f64> {
        // All events up to now have come with the answer.
        self.execute("query-status", &json!({}));
        let time = |name: &str| {
            let event = self
                .events
                .iter()
                .rev()
                .find(|event| event["event"] == name)?;
            let part = |part: &str| event["timestamp"][part].as_f64();
            Some(part("seconds")? + part("microseconds")? * 1e-6)
        };
        Some(time("RESUME")? - time("STOP")?)
    }

    /// SHA-256 of guest RAM; the guest must be stopped.
    pub fn ram_sha256(&self) -> String {
        sha256(&self.ram_bytes())
    }

    /// Guest RAM; the guest must be stopped.
    pub fn ram_bytes(&self) -> Vec<u8> {
        std::fs::read(&self.ram).unwrap()
    }

    /// What the guest has sent on its serial port.
    pub fn serial(&self) -> String {
        std::fs::read_to_string(&self.serial).unwrap_or_default()
    }

    /// The guest of the boot sector, at count `before` when it was stopped, must go on from there.
    pub fn goes_on(&mut self, before: u32) {
        self.execute("cont", &json!({}));
        self.wait_serial(6);
        let serial = self.serial();
        assert!(!serial.contains('T'), "the guest saw a torn page: {serial}");
        // It reports every 4096 rounds, and may have been stopped within a report.
        let reports: Vec<u32> = serial
            .lines()
            .filter_map(|line| u32::from_str_radix(line.strip_prefix('C')?, 16).ok())
            .collect();
        let expected = (before & !0xfff) + 0x1000;
        assert!(
            reports[0] == expected || reports[0] == before,
            "{before:x}: {serial}"
        );
        let steady = reports.windows(2).all(|two| two[1] == two[0] + 0x1000);
        assert!(reports.len() > 3 && steady, "{serial}");
    }

    /// Waits until the guest has sent more than `lines` whole lines on its serial port.
    pub fn wait_serial(&mut self, lines: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.serial().matches('\n').count() <= lines {
            assert!(
                Instant::now() < deadline,
                "the guest is silent: {}",
                self.said()
            );
            // A question to QEMU, to give it time.
            self.execute("query-status", &json!({}));
        }
    }
}

/// QEMU's connection to us; one that ends instead says why.
fn accept(listener: &UnixListener, child: &mut Child, stderr: &Path) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return stream;
        }
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "QEMU does not come up ({ended:?}): {}",
            std::fs::read_to_string(stderr).unwrap_or_default()
        );
        std::thread::yield_now();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RAM of a paused guest: mostly zero, with runs of text-like and of random pages.
pub fn seeded(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (number, page) in bytes.chunks_mut(4096).enumerate() {
        // 1 MiB of each 4 MiB has contents.
        match number % 1024 {
            0..96 => page.iter_mut().enumerate().for_each(|(i, byte)| {
                *byte = b"all work and no play makes a dull guest; "[(i + number) % 41];
            }),
            96..192 => page
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&next().to_le_bytes())),
            192..256 if number % 3 == 0 => page.fill(number as u8 | 1),
            _ => {}
        }
    }
    bytes
}
