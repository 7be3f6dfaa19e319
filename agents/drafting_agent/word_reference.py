"""Makes the reference document from which pandoc takes the styles of a DOCX: fonts, page size and a numbered footer."""

import io
import re
import zipfile
from xml.etree import ElementTree as ET

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
ACCENT = "1F4E79"
MUTED = "5A6570"
_FOOTER = f"""<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<w:ftr xmlns:w="{_W}"><w:p><w:pPr><w:jc w:val="center"/></w:pPr>
<w:r><w:rPr><w:color w:val="{MUTED}"/><w:sz w:val="18"/></w:rPr><w:fldChar w:fldCharType="begin"/></w:r>
<w:r><w:rPr><w:color w:val="{MUTED}"/><w:sz w:val="18"/></w:rPr>
<w:instrText xml:space="preserve"> PAGE </w:instrText></w:r>
<w:r><w:fldChar w:fldCharType="separate"/></w:r><w:r><w:t>1</w:t></w:r>
<w:r><w:fldChar w:fldCharType="end"/></w:r></w:p></w:ftr>"""
_SECTION = (
    '<w:sectPr><w:footerReference w:type="default" r:id="rIdFooter"/>'
    '<w:footnotePr><w:numRestart w:val="eachSect"/></w:footnotePr>'
    '<w:pgSz w:w="11906" w:h="16838"/>'
    '<w:pgMar w:top="1440" w:right="1474" w:bottom="1440" w:left="1474" w:header="709" w:footer="709" w:gutter="0"/>'
    "<w:titlePg/></w:sectPr>"
)

_PARAGRAPH_STYLES: dict[str, tuple[str, str]] = {
    # style: (paragraph properties, run properties), which replace those of pandoc's own reference
    "BodyText": ('<w:spacing w:before="0" w:after="160" w:line="300" w:lineRule="auto"/>', ""),
    "Compact": ('<w:spacing w:before="20" w:after="60" w:line="280" w:lineRule="auto"/>', ""),
    "Title": (
        '<w:keepNext/><w:spacing w:before="3000" w:after="200" w:line="240" w:lineRule="auto"/><w:jc w:val="left"/>',
        f'<w:b/><w:color w:val="{ACCENT}"/><w:sz w:val="60"/><w:szCs w:val="60"/>',
    ),
    "Subtitle": (
        '<w:spacing w:before="0" w:after="280" w:line="276" w:lineRule="auto"/><w:jc w:val="left"/>',
        f'<w:b w:val="0"/><w:i/><w:color w:val="{MUTED}"/><w:sz w:val="28"/><w:szCs w:val="28"/>',
    ),
    "Author": (
        '<w:spacing w:before="0" w:after="60"/><w:jc w:val="left"/>',
        '<w:b w:val="0"/><w:color w:val="000000"/><w:sz w:val="24"/><w:szCs w:val="24"/>',
    ),
    "Date": (
        '<w:spacing w:before="0" w:after="480"/><w:jc w:val="left"/>',
        f'<w:b w:val="0"/><w:color w:val="{MUTED}"/><w:sz w:val="22"/><w:szCs w:val="22"/>',
    ),
    "Heading1": (
        '<w:keepNext/><w:keepLines/><w:spacing w:before="440" w:after="140"/><w:outlineLvl w:val="0"/>',
        f'<w:b/><w:color w:val="{ACCENT}"/><w:sz w:val="34"/><w:szCs w:val="34"/>',
    ),
    "Heading2": (
        '<w:keepNext/><w:keepLines/><w:spacing w:before="340" w:after="110"/><w:outlineLvl w:val="1"/>',
        f'<w:b/><w:color w:val="{ACCENT}"/><w:sz w:val="28"/><w:szCs w:val="28"/>',
    ),
    "Heading3": (
        '<w:keepNext/><w:keepLines/><w:spacing w:before="280" w:after="90"/><w:outlineLvl w:val="2"/>',
        f'<w:b/><w:color w:val="{ACCENT}"/><w:sz w:val="24"/><w:szCs w:val="24"/>',
    ),
    "BlockText": (
        (
            '<w:pBdr><w:left w:val="single" w:sz="18" w:space="10" w:color="B9C7D6"/></w:pBdr>'
            '<w:spacing w:before="120" w:after="160"/><w:ind w:left="400" w:right="400"/>'
        ),
        f'<w:i/><w:color w:val="{MUTED}"/>',
    ),
    "TOCHeading": (
        '<w:keepNext/><w:spacing w:before="360" w:after="120"/>',
        f'<w:b/><w:color w:val="{ACCENT}"/><w:sz w:val="26"/><w:szCs w:val="26"/>',
    ),
}
_NEW_STYLES = f"""<w:style xmlns:w="{_W}" w:type="paragraph" w:customStyle="1" w:styleId="SourceCode">
<w:name w:val="Source Code"/><w:basedOn w:val="Normal"/><w:link w:val="VerbatimChar"/>
<w:pPr><w:keepLines/><w:shd w:val="clear" w:color="auto" w:fill="F3F5F7"/><w:wordWrap w:val="off"/>
<w:spacing w:before="120" w:after="200" w:line="250" w:lineRule="auto"/><w:ind w:left="120" w:right="120"/></w:pPr>
<w:rPr><w:rFonts w:ascii="Consolas" w:hAnsi="Consolas" w:cs="Consolas"/><w:sz w:val="19"/></w:rPr></w:style>"""
_TABLE_PROPERTIES = f"""<w:tblPr xmlns:w="{_W}"><w:tblInd w:w="0" w:type="dxa"/><w:tblBorders>
<w:top w:val="single" w:sz="8" w:space="0" w:color="5A6570"/>
<w:bottom w:val="single" w:sz="6" w:space="0" w:color="5A6570"/>
<w:insideH w:val="single" w:sz="4" w:space="0" w:color="DCDFE3"/></w:tblBorders><w:tblCellMar>
<w:top w:w="50" w:type="dxa"/><w:left w:w="108" w:type="dxa"/>
<w:bottom w:w="50" w:type="dxa"/><w:right w:w="108" w:type="dxa"/>
</w:tblCellMar></w:tblPr>"""
_FONTS_OF_THEME = (("Aptos Display", "Calibri"), ("Aptos", "Calibri"))


def styled_reference(default: bytes) -> bytes:
    """Pandoc's reference document with our styles; raises KeyError or ValueError when it has changed its shape."""
    source = zipfile.ZipFile(io.BytesIO(default))
    parts = {name: source.read(name) for name in source.namelist()}
    parts["word/styles.xml"] = _styles(parts["word/styles.xml"])
    parts["word/footer1.xml"] = _FOOTER.encode()
    theme = parts["word/theme/theme1.xml"].decode()
    for old, new in _FONTS_OF_THEME:
        theme = theme.replace(f'typeface="{old}" panose="02110004020202020204"', f'typeface="{new}"')
    parts["word/theme/theme1.xml"] = theme.encode()
    document = parts["word/document.xml"].decode()
    document, replaced = re.subn(r"<w:sectPr>.*?</w:sectPr>", lambda _: _SECTION, document, flags=re.DOTALL)
    if replaced != 1:
        raise ValueError(f"pandoc's reference document has {replaced} sections, expected 1")
    parts["word/document.xml"] = document.encode()
    relation = f'<Relationship Type="{_R}/footer" Id="rIdFooter" Target="footer1.xml"/></Relationships>'
    parts["word/_rels/document.xml.rels"] = _ended(parts["word/_rels/document.xml.rels"], "</Relationships>", relation)
    content_type = (
        '<Override PartName="/word/footer1.xml"'
        ' ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.footer+xml"/></Types>'
    )
    parts["[Content_Types].xml"] = _ended(parts["[Content_Types].xml"], "</Types>", content_type)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in parts.items():
            target.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _ended(part: bytes, end: str, replacement: str) -> bytes:
    return part.decode().replace(end, replacement).encode()


def _styles(content: bytes) -> bytes:
    ET.register_namespace("w", _W)
    ET.register_namespace("r", _R)
    root = ET.fromstring(content)  # noqa: S314 - pandoc's own file
    by_id = {style.get(f"{{{_W}}}styleId"): style for style in root.iter(f"{{{_W}}}style")}
    for name, (paragraph, run) in _PARAGRAPH_STYLES.items():
        _replace(by_id[name], "pPr", paragraph)
        if run:
            _replace(by_id[name], "rPr", run)
    root.append(ET.fromstring(_NEW_STYLES))  # noqa: S314 - the constant above
    table = by_id["Table"]
    old = table.find(f"{{{_W}}}tblPr")
    if old is None:
        raise ValueError("pandoc's reference document has no table style")
    table[list(table).index(old)] = ET.fromstring(_TABLE_PROPERTIES)  # noqa: S314 - the constant above
    made: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return made


def _replace(style: ET.Element, part: str, content: str) -> None:
    """Puts properties in place; the schema wants them after the names and flags, paragraph before run."""
    made = ET.fromstring(f'<w:{part} xmlns:w="{_W}">{content}</w:{part}>')  # noqa: S314 - the constants above
    old = style.find(f"{{{_W}}}{part}")
    if old is not None:
        style[list(style).index(old)] = made
        return
    run = style.find(f"{{{_W}}}rPr")
    position = list(style).index(run) if part == "pPr" and run is not None else len(style)
    style.insert(position, made)
