//! The things that are measured.

use crate::ours::Compression;
use crate::qemu::Result;
use crate::transfer::{Ask, FileAsk, Stage, Took, Whose};

/// Who sends to whom; for files, whose the one end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    Ours,
    Qemus,
    FromQemu,
    ToQemu,
}

impl Pairing {
    fn ends(self) -> (Whose, Whose) {
        match self {
            Self::Ours => (Whose::Multifd, Whose::Multifd),
            Self::Qemus => (Whose::Qemu, Whose::Qemu),
            Self::FromQemu => (Whose::Qemu, Whose::Multifd),
            Self::ToQemu => (Whose::Multifd, Whose::Qemu),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "multifd",
            Self::Qemus => "QEMU",
            Self::FromQemu => "QEMU to multifd",
            Self::ToQemu => "multifd to QEMU",
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Transfer(Ask),
    Save(FileAsk),
    Load(FileAsk),
}

impl Case {
    /// What it has in common with the cases that differ from it in channels only.
    pub(crate) fn group(self) -> String {
        let of_file = |what: &str, ask: FileAsk| {
            let place = if ask.on_disk { "disk" } else { "tmpfs" };
            let direct = if ask.direct { ", direct" } else { "" };
            format!("mapped-ram {what}, {place}{direct}")
        };
        match self {
            Self::Transfer(ask) => format!(
                "{}, {}{}",
                ask.compression.name(),
                if ask.unix { "unix" } else { "tcp" },
                if ask.prealloc { ", prealloc" } else { "" }
            ),
            Self::Save(ask) => of_file("save", ask),
            Self::Load(ask) => of_file("load", ask),
        }
    }

    pub(crate) fn channels(self) -> u8 {
        match self {
            Self::Transfer(ask) => ask.channels,
            Self::Save(ask) | Self::Load(ask) => ask.channels,
        }
    }

    pub(crate) fn name(self) -> String {
        format!("{} x{}", self.group(), self.channels())
    }

    /// Who is measured, beside us.
    pub(crate) fn pairings(self, has_qemu: bool) -> Vec<Pairing> {
        // So many channels nobody gives a QEMU.
        if !has_qemu || self.channels() > 8 {
            return vec![Pairing::Ours];
        }
        match self {
            // Over Unix sockets mixed pairs show nothing that those over TCP do not, where the codec takes all the time.
            Self::Transfer(ask) if !ask.unix || ask.compression == Compression::None => {
                vec![Pairing::Ours, Pairing::Qemus, Pairing::FromQemu, Pairing::ToQemu]
            }
            _ => vec![Pairing::Ours, Pairing::Qemus],
        }
    }

    pub(crate) fn run(self, stage: &Stage, pair: Pairing) -> Result<Took> {
        let (from, to) = pair.ends();
        let took = match self {
            Self::Transfer(ask) => stage.run(ask, from, to),
            Self::Save(ask) => return stage.save(from, ask),
            Self::Load(ask) => stage.load(from, ask),
        };
        let took = took.map_err(|e| format!("{}, {}: {e}", self.name(), pair.name()))?;
        if stage.is_same()? {
            return Ok(took);
        }
        Err(format!("{}, {}: the memory differs", self.name(), pair.name()))
    }
}

/// All cases, or those of a quick run.
pub(crate) fn cases(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |compression, unix, prealloc, channels: &[u8]| {
        cases.extend(channels.iter().map(|&channels| {
            Case::Transfer(Ask {
                unix,
                compression,
                channels,
                prealloc,
            })
        }));
    };
    if quick {
        add(Compression::None, false, false, &[1, 2, 4]);
        add(Compression::None, false, true, &[1, 2, 4]);
        add(Compression::None, true, false, &[2]);
        add(Compression::Zstd, false, false, &[2]);
    } else {
        let (some, more): (&[u8], &[u8]) = (&[1, 2, 4, 8], &[1, 2, 4, 8, 16, 64]);
        add(Compression::None, false, false, more);
        add(Compression::None, false, true, more);
        add(Compression::None, true, false, some);
        for compression in [Compression::Zstd, Compression::Zlib] {
            add(compression, false, false, more);
            add(compression, true, false, some);
        }
    }
    let places: &[(bool, bool)] = if quick {
        &[(false, false)]
    } else {
        &[(false, false), (true, false), (true, true)]
    };
    for &(on_disk, direct) in places {
        for channels in if quick { 2..=2 } else { 1..=2 } {
            let ask = FileAsk {
                channels,
                on_disk,
                direct,
            };
            cases.extend([Case::Save(ask), Case::Load(ask)]);
        }
    }
    cases
}
