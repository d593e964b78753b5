//! Does a QEMU map a snapshot as it should?

use super::super::client::Qmp;
use crate::file::SnapshotFile;
use crate::instant::{Backend, QemuOptions, is_backend};
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::path::Path;

/// Devices that have other processes or the hardware work on the guest's memory: they would not see
/// what is private to QEMU, or would have all of it copied.
const NOT_PRIVATE: [(&str, &str); 4] = [
    (
        "vhost-user",
        "its backend would see another memory than the guest",
    ),
    (
        "vhost-vdpa",
        "its hardware would have all of the memory copied",
    ),
    ("vfio", "its hardware would have all of the memory copied"),
    ("ivshmem", "it shares memory with others"),
];

/// The numbers of the snapshot's blocks that the QEMU at `qmp` maps from the file, all of those that
/// can be; otherwise what is missing.
pub(super) fn check(qmp: &mut Qmp, file: &SnapshotFile) -> Result<Vec<usize>, QmpError> {
    let options = QemuOptions::of(file)?;
    let plugged = discarded(qmp)?;
    let mut problems = Vec::new();
    let mut mapped = Vec::new();
    for (number, block) in file.mapped().blocks.iter().enumerate() {
        if !is_backend(&block.name) {
            continue;
        }
        let Some(backend) = options.backends.iter().find(|known| known.id == block.name) else {
            continue;
        };
        let id = backend.object_id();
        if plugged.iter().any(|memory| memory == id) {
            // virtio-mem discards pieces of it; its memory is loaded.
            continue;
        }
        match differences(qmp, id, backend, &options)? {
            Some(found) => problems.push(format!(
                "{found} (-object {})",
                options.object(backend).to_string_lossy()
            )),
            None => mapped.push(number),
        }
    }
    if problems.is_empty() {
        return Ok(mapped);
    }
    Err(QmpError::Refused(format!(
        "this QEMU does not map the snapshot: {}. `multifd qemu-options` prints all the options it needs",
        problems.join("; ")
    )))
}

/// How a backend of QEMU differs from what is needed.
fn differences(
    qmp: &mut Qmp,
    id: &str,
    needed: &Backend,
    options: &QemuOptions,
) -> Result<Option<String>, QmpError> {
    let property = |qmp: &mut Qmp, name: &str| -> Result<Option<Value>, QmpError> {
        let arguments = json!({ "path": format!("/objects/{id}"), "property": name });
        match qmp.execute("qom-get", &arguments) {
            Ok(value) => Ok(Some(value)),
            // Neither the object nor the property may be there.
            Err(QmpError::Monitor { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let differs = |what: &str| Ok(Some(format!("memory backend {id:?} {what}")));
    match property(qmp, "type")? {
        None => return differs("is missing"),
        Some(kind) if kind != "memory-backend-file" => {
            return differs(&format!(
                "is a {}",
                kind.as_str().unwrap_or("thing of another type")
            ));
        }
        Some(_) => {}
    }
    let path = property(qmp, "mem-path")?;
    let path = path.as_ref().and_then(Value::as_str).unwrap_or_default();
    if !is_same(Path::new(path), &options.path) {
        return differs(&format!("maps {path:?}"));
    }
    for (name, expected) in [
        ("offset", json!(needed.offset)),
        ("size", json!(needed.size)),
        ("share", json!(false)),
        ("readonly", json!(true)),
    ] {
        let found = property(qmp, name)?;
        if found.as_ref() != Some(&expected) {
            let found = found.map_or_else(|| "unknown".into(), |found| found.to_string());
            return differs(&format!("has {name}={found}, and needs {expected}"));
        }
    }
    // Memory that the guest cannot write to is no RAM.
    match property(qmp, "rom")? {
        Some(rom) if rom == "off" => Ok(None),
        Some(rom) => differs(&format!("has rom={rom}, and needs off")),
        None => differs("has no property rom: this QEMU is too old (8.2 was the first)"),
    }
}

fn is_same(found: &Path, expected: &Path) -> bool {
    found == expected || multifd_transport_file::same_file(found, expected)
}

/// Backends of which a device discards pieces, as virtio-mem does.
fn discarded(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let devices = match qmp.execute("query-memory-devices", &json!({})) {
        // Machines without memory devices may not know the command.
        Err(QmpError::Monitor { .. }) => return Ok(Vec::new()),
        other => other?,
    };
    let of = |device: &Value| {
        let kind = device.get("type")?.as_str()?;
        let memory = device.pointer("/data/memdev")?.as_str()?;
        let id = memory.strip_prefix("/objects/").unwrap_or(memory);
        (kind == "virtio-mem").then(|| id.to_owned())
    };
    Ok(devices
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(of)
        .collect())
}

/// Refuses devices that do not go together with private memory.
pub(super) fn check_devices(qmp: &mut Qmp) -> Result<(), QmpError> {
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let list = qmp.execute("qom-list", &json!({ "path": folder }))?;
        for device in list.as_array().into_iter().flatten() {
            let kind = device
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or_default();
            for (part, why) in NOT_PRIVATE {
                if kind.contains(part) {
                    return Err(refused(kind, why));
                }
            }
        }
    }
    if qmp.human("info network")?.contains("vhost-user") {
        let (part, why) = NOT_PRIVATE.first().copied().unwrap_or_default();
        return Err(refused(part, why));
    }
    Ok(())
}

fn refused(kind: &str, why: &str) -> QmpError {
    QmpError::Refused(format!(
        "a QEMU with a {kind} cannot start from a private mapping: {why}. Restore without --instant"
    ))
}
