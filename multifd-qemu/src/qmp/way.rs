//! What the ways of a migration need of QEMU's settings.

use multifd_core::packet::Compression;
use serde_json::{Value, json};

/// Capabilities that may stay on: they change neither the stream nor the way it takes. All others
/// are switched off, also those that only a later QEMU knows.
const HARMLESS: [&str; 5] = [
    "auto-converge",
    "zero-blocks",
    "late-block-activate",
    "validate-uuid",
    "dirty-limit",
];

/// Those of them that QEMU refuses beside a background snapshot.
const NOT_IN_BACKGROUND: [&str; 3] = ["auto-converge", "late-block-activate", "validate-uuid"];

/// How a migration goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "file"), allow(dead_code))]
pub(super) enum Way {
    /// Over channels, compressed by a method.
    Channels(u8, Compression),
    /// Through a mapped-ram file that QEMU opens, by so many threads, past the page cache or not.
    File(u8, bool),
    /// Over the main connection alone.
    Main,
    /// Over the main connection, from a guest that runs, as of one instant.
    Background,
}

impl Way {
    /// What a capability has to be; `None` if it may stay as it is.
    pub(super) fn capability(self, name: &str) -> Option<bool> {
        match name {
            // Events say at once that a migration is complete, and the guest need not wait.
            "events" => Some(true),
            "multifd" => Some(matches!(self, Self::Channels(..) | Self::File(..))),
            "mapped-ram" => Some(matches!(self, Self::File(..))),
            "background-snapshot" => Some(self == Self::Background),
            _ if self == Self::Background && NOT_IN_BACKGROUND.contains(&name) => Some(false),
            _ if HARMLESS.contains(&name) => None,
            _ => Some(false),
        }
    }

    /// What parameters have to be.
    pub(super) fn parameters(self) -> Vec<(&'static str, Value)> {
        let (channels, compression, direct) = match self {
            Self::Channels(channels, compression) => (Some(channels), compression, false),
            Self::File(channels, direct) => (Some(channels), Compression::None, direct),
            Self::Main | Self::Background => (None, Compression::None, false),
        };
        let mut all = vec![
            ("multifd-compression", json!(compression.name())),
            ("zero-page-detection", json!("multifd")),
            ("max-bandwidth", json!(0)),
            ("avail-switchover-bandwidth", json!(0)),
            ("tls-creds", json!("")),
            ("mode", json!("normal")),
            ("direct-io", json!(direct)),
        ];
        all.extend(channels.map(|channels| ("multifd-channels", json!(channels))));
        all
    }

    /// Whether a killed process leaves a migration behind that goes on.
    pub(super) fn outlives_us(self) -> bool {
        matches!(self, Self::File(..))
    }
}
