"""Operations: mesh.* tasks and queries."""
