//! Archives of odd entries: well-formed tar and zip files with any name, type and link.
#![no_main]

#[path = "support/ground.rs"]
mod ground;

use std::io::{Cursor, Write};

use arbitrary::Arbitrary;
use ground::Ground;
use wire::spec::ArchiveFormat;
use zip::write::SimpleFileOptions;

#[derive(Arbitrary, Debug)]
struct Plan {
    is_zip: bool,
    entries: Vec<Entry>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    name: Vec<Part>,
    link: Vec<Part>,
    kind: u8,
    mode: u16,
    content: Vec<u8>,
}

/// Names that meet each other, so that entries lie in, behind and over one another.
#[derive(Arbitrary, Debug)]
enum Part {
    A,
    B,
    Up,
    Here,
    Root,
    Text(String),
}

fn path(parts: &[Part]) -> String {
    let part = |part: &Part| match part {
        Part::A => "a".to_owned(),
        Part::B => "b".to_owned(),
        Part::Up => "..".to_owned(),
        Part::Here => ".".to_owned(),
        Part::Root => String::new(),
        Part::Text(text) => text.clone(),
    };
    parts.iter().map(part).collect::<Vec<_>>().join("/")
}

libfuzzer_sys::fuzz_target!(|plan: Plan| {
    let ground = Ground::new();
    if plan.is_zip {
        if let Some(bytes) = zip_of(&plan.entries) {
            ground.unpack(&bytes, ArchiveFormat::Zip);
        }
    } else {
        ground.unpack(&ground::gzip(&tar_of(&plan.entries)), ArchiveFormat::TarGz);
    }
});

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        // The setters refuse what we are after.
        let raw = header.as_old_mut();
        fill(&mut raw.name, path(&entry.name).as_bytes());
        fill(&mut raw.linkname, path(&entry.link).as_bytes());
        let kinds = [b'0', b'1', b'2', b'3', b'5', b'6', b'L', b'K', b'x', b'g', b'S', 0];
        header.set_entry_type(tar::EntryType::new(kinds[usize::from(entry.kind) % kinds.len()]));
        header.set_mode(u32::from(entry.mode));
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.content.as_slice()).expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

fn fill(field: &mut [u8; 100], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// `None`: the writer refused one of the names.
fn zip_of(entries: &[Entry]) -> Option<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for entry in entries {
        let options = SimpleFileOptions::default().unix_permissions(u32::from(entry.mode));
        match entry.kind % 3 {
            0 => {
                zip.start_file(path(&entry.name), options).ok()?;
                zip.write_all(&entry.content).ok()?;
            }
            1 => zip.add_directory(path(&entry.name), options).ok()?,
            _ => zip.add_symlink(path(&entry.name), path(&entry.link), options).ok()?,
        }
    }
    Some(zip.finish().ok()?.into_inner())
}
