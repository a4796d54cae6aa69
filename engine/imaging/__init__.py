"""Operations on pictures, and how pictures are compared."""
