"""``python -m deploy`` is ``splitd``."""

from deploy.splitd import main

if __name__ == "__main__":
    main()
