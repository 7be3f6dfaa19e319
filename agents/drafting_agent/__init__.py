"""The agent that turns Markdown into finished documents: HTML, DOCX, PDF and EPUB."""
