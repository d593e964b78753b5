//! What machine a QEMU is: its RAM blocks, its type, its UUID, where its memory lies.

use super::client::Qmp;
use crate::Configuration;
#[cfg(feature = "file")]
use crate::MappedFile;
use crate::qmp::QmpError;
use multifd_core::packet::Uuid;
use serde_json::{Value, json};

/// A RAM block of a QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) name: String,
    pub(super) used: u64,
    /// It can be made as large as this; most blocks cannot be made larger than they are.
    pub(super) most: u64,
}

/// The RAM blocks that migrate, or `None` if QEMU does not tell (before 6.2).
pub(super) fn blocks(qmp: &mut Qmp) -> Option<Vec<Block>> {
    let answer = qmp.ask("x-query-ramblock", &json!({})).ok()?;
    let blocks = parse_blocks(answer.get("human-readable-text")?.as_str()?);
    (!blocks.is_empty()).then_some(blocks)
}

/// Lines of name, page size (two words), offset, used and total length; further columns are newer.
fn parse_blocks(text: &str) -> Vec<Block> {
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let block = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // A name may have spaces in it, and a block without a name does not migrate.
        let at = words.iter().position(|word| word.starts_with("0x"))?;
        let name = words.get(..at.checked_sub(2)?)?.join(" ");
        (!name.is_empty()).then_some(Block {
            name,
            used: hex(words.get(at + 1)?)?,
            most: hex(words.get(at + 2)?)?,
        })
    };
    text.lines().filter_map(block).collect()
}

fn machine_type_question() -> Value {
    json!({ "path": "/machine", "property": "type" })
}

/// Sends the questions ahead that every work with a QEMU begins with.
pub(super) fn ask_ahead(qmp: &mut Qmp) -> Result<(), QmpError> {
    let plain = [
        "query-status",
        "query-migrate",
        "x-query-ramblock",
        "query-uuid",
        "query-migrate-capabilities",
        "query-migrate-parameters",
        "query-cpus-fast",
    ];
    let mut all: Vec<_> = plain.map(|name| (name, json!({}))).to_vec();
    all.push(("qom-get", machine_type_question()));
    qmp.ask_ahead(&all)
}

/// The machine type, as a snapshot names it.
fn machine_type(qmp: &mut Qmp) -> Option<String> {
    let answer = qmp.ask("qom-get", &machine_type_question()).ok()?;
    Some(answer.as_str()?.strip_suffix("-machine")?.to_owned())
}

/// Checks that a QEMU is the machine that a snapshot is of; it would only say on its standard error
/// that it is not, and end.
pub(super) fn check_fits(
    qmp: &mut Qmp,
    configuration: &Configuration,
    snapshot: &[(String, u64)],
) -> Result<(), QmpError> {
    let mut problems = Vec::new();
    let expected = &configuration.machine;
    if let Some(found) = machine_type(qmp)
        && found != *expected
        && !expected.is_empty()
    {
        problems.push(format!(
            "the machine type is {found:?}, and the snapshot is of {expected:?} (-machine {expected})"
        ));
    }
    if let Some(blocks) = blocks(qmp) {
        problems.extend(differences(snapshot, &blocks));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(QmpError::Refused(format!(
        "this QEMU is another machine than the snapshot's, and would end if it were sent: {}; start it as the \
         snapshot's QEMU was started",
        problems.join("; ")
    )))
}

/// The RAM blocks of a file: name, bytes.
#[cfg(feature = "file")]
pub(super) fn placed(file: &MappedFile) -> Vec<(String, u64)> {
    let blocks = file.blocks.iter();
    blocks
        .map(|block| (block.name.clone(), block.layout.used_length()))
        .collect()
}

/// How the RAM blocks of a snapshot (name, bytes) and of a QEMU differ.
fn differences(snapshot: &[(String, u64)], qemu: &[Block]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, len) in snapshot {
        match qemu.iter().find(|block| block.name == *name) {
            None => found.push(format!("it has no RAM block {name:?}")),
            Some(block)
                if block.used == *len || (block.most > block.used && *len <= block.most) => {}
            Some(block) => found.push(format!(
                "its RAM block {name:?} has {} bytes, and the snapshot's {len} ({})",
                block.used,
                if ["pc.ram", "mach-virt.ram", "ram"].contains(&name.as_str()) {
                    format!("-m {}", mib(*len))
                } else {
                    "check -m and the memory backends".into()
                }
            )),
        }
    }
    for Block { name, .. } in qemu {
        if !snapshot.iter().any(|(known, _)| known == name) {
            found.push(format!(
                "it has a RAM block {name:?}, and the snapshot has none"
            ));
        }
    }
    found
}

fn mib(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{}M", bytes >> 20)
    } else {
        format!("{bytes}B")
    }
}

/// The VM's UUID, or zeros.
pub(super) fn uuid(qmp: &mut Qmp) -> Result<Uuid, QmpError> {
    let info = qmp.ask("query-uuid", &json!({}))?;
    let text = info.get("UUID").and_then(Value::as_str).unwrap_or_default();
    Ok(text.parse().unwrap_or_default())
}

/// What the monitor shows of the memory's layout; the guest must stand still, or it may be another
/// one a moment later.
pub(super) fn flat_view(qmp: &mut Qmp) -> Option<String> {
    qmp.human("info mtree -f").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 prints it; 10.0 has two columns more.
    const BLOCKS: &str = "              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
    /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000  0x00007f008e000000  ro
                            4 KiB  0x0000000004280000 0x0000000000001000 0x0000000000001000
";

    fn of(name: &str, len: u64) -> (String, u64) {
        (name.into(), len)
    }

    #[test]
    fn blocks_are_read_off_the_monitors_table() {
        let blocks = parse_blocks(BLOCKS);
        let names: Vec<_> = blocks
            .iter()
            .map(|b| (b.name.as_str(), b.used, b.most))
            .collect();
        assert_eq!(
            names,
            [
                ("pc.ram", 64 << 20, 64 << 20),
                ("/rom@etc/acpi/tables", 0x20000, 0x20_0000)
            ]
        );
    }

    #[test]
    fn what_differs_is_named() {
        let qemu = parse_blocks(BLOCKS);
        let same = [of("pc.ram", 64 << 20), of("/rom@etc/acpi/tables", 0x40000)];
        assert!(differences(&same, &qemu).is_empty(), "tables may grow");
        let other = [of("pc.ram", 128 << 20), of("vga.vram", 1)];
        let found = differences(&other, &qemu).join("; ");
        assert!(
            found.contains("\"pc.ram\" has 67108864 bytes") && found.contains("-m 128M"),
            "{found}"
        );
        assert!(found.contains("no RAM block \"vga.vram\""), "{found}");
        assert!(
            found.contains("a RAM block \"/rom@etc/acpi/tables\", and the snapshot has none"),
            "{found}"
        );
    }
}
