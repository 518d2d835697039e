# Lists the components of an SBOM whose license is not allowed, except Go's own library. The detector reports the
# BSD-3-Clause license of golang.org/x as BSD-Source-Code.
["MIT", "ISC", "0BSD", "BSD-2-Clause", "BSD-3-Clause", "BSD-Source-Code", "Apache-2.0", "MPL-2.0"] as $allowed
# A person has read these licenses, because the detector does not know them. A new version must be read again.
| {
  "github.com/pressly/goose/v3@v3.29.0": "MIT",
  "github.com/rcrowley/go-metrics@v0.0.0-20250401214520-65e299d6c5c9": "BSD-2-Clause",
  "github.com/xi2/xz@v0.0.0-20171230120015-48954b6210f8": "public domain"
} as $read
| .components[]
| select(.name != "std")
| (.name + "@" + .version) as $component
| [.evidence.licenses[]?.license | .id // .name] as $licenses
| select($read[$component] == null and ($licenses == [] or $licenses - $allowed != []))
| "\($component): \(if $licenses == [] then "no license that is known" else $licenses | join(", ") end)"
