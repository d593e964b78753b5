//! Two hosts with a link between them: network namespaces, whose link can be made slow or cut.

use rustix::thread::LinkNameSpaceType;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether this machine lets us make network namespaces. A test that needs them returns when not,
/// having said so; with `CI` set that is a failure.
pub fn possible() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        let name = format!("mfd{}-try", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        let why = match made {
            Ok(output) if output.status.success() => {
                ip(&["netns", "del", &name]);
                return true;
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => format!("ip: {error}"),
        };
        assert!(
            std::env::var_os("CI").is_none(),
            "no test over a slow link can run in CI: {why}"
        );
        eprintln!("SKIPPED: no network namespaces here (they need root and iproute2): {why}");
        false
    })
}

/// Has the calling thread, and those it starts from now on, live in this namespace.
pub fn enter(name: &str) {
    let namespace = std::fs::File::open(Path::new("/run/netns").join(name)).unwrap();
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .unwrap();
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn succeed(program: &str, args: &[&str]) {
    let output = run(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn ip(args: &[&str]) {
    succeed("ip", args);
}

/// Two namespaces joined by a link; they are gone when this is dropped.
#[derive(Debug)]
pub struct Link {
    /// The namespace of the source's side, whose address is [`Link::NEAR`].
    pub near: String,
    /// The namespace of the destination's side, whose address is [`Link::FAR`].
    pub far: String,
}

impl Link {
    /// Address of the source's side.
    pub const NEAR: &'static str = "10.77.0.1";
    /// Address of the destination's side.
    pub const FAR: &'static str = "10.77.0.2";

    /// A link as fast as the machine.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "mfd{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let link = Self {
            near: format!("{name}a"),
            far: format!("{name}b"),
        };
        let Self { near, far } = &link;
        ip(&["netns", "add", near]);
        ip(&["netns", "add", far]);
        ip(&[
            "link", "add", "wire", "netns", near, "type", "veth", "peer", "name", "wire", "netns",
            far,
        ]);
        for (namespace, address) in [(near, Self::NEAR), (far, Self::FAR)] {
            ip(&[
                "-n",
                namespace,
                "addr",
                "add",
                &format!("{address}/24"),
                "dev",
                "wire",
            ]);
            ip(&["-n", namespace, "link", "set", "wire", "up"]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        link
    }

    /// Lets this many megabits a second through, from near to far; as many as the machine can for
    /// `None`.
    pub fn limit(&self, megabits: Option<u32>) {
        let tc = ["netns", "exec", &self.near, "tc", "qdisc"];
        // There may be none.
        let _ = run("ip", &[&tc[..], &["del", "dev", "wire", "root"]].concat());
        if let Some(megabits) = megabits {
            // A burst of 2 ms, so that the timer's grain does not matter.
            let (rate, burst) = (
                format!("{megabits}mbit"),
                format!("{}kb", (megabits / 4).max(32)),
            );
            let limit = [
                "add", "dev", "wire", "root", "tbf", "rate", &rate, "burst", &burst, "latency",
                "50ms",
            ];
            ip(&[&tc[..], &limit].concat());
        }
    }

    /// Takes the link down, or up again.
    pub fn set_up(&self, up: bool) {
        ip(&[
            "-n",
            &self.near,
            "link",
            "set",
            "wire",
            if up { "up" } else { "down" },
        ]);
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for namespace in [&self.near, &self.far] {
            let _ = run("ip", &["netns", "del", namespace]);
        }
    }
}

/// A command that runs in a namespace, or, for `None`, where we are.
pub fn command(namespace: Option<&str>, program: &std::ffi::OsStr) -> Command {
    let Some(namespace) = namespace else {
        return Command::new(program);
    };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}
